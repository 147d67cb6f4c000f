"""What is loaded, and who the owner is."""

from typing import Any

extra_network_lora: Any = None
