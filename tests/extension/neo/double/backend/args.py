"""What the user has chosen while the program runs."""

from types import SimpleNamespace

dynamic_args = SimpleNamespace(online_lora=False)
