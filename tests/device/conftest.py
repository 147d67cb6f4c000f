"""The tests in `suite` need a process of their own, as its device cannot be taken back: test_device.py starts it."""

from __future__ import annotations

import os

OWN_PROCESS = "LORA_RUNTIME_DEVICE_SUITE"

if OWN_PROCESS not in os.environ:
    collect_ignore = ["suite"]
