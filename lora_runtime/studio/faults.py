"""What is wrong with what was asked of the studio."""

from __future__ import annotations

from lora_runtime.errors import LoraError

__all__ = ["CancelledError", "StudioError"]


class StudioError(LoraError):
    """What was asked cannot be done as it is asked."""


class CancelledError(StudioError):
    """Whoever asked for a picture does not want it any more."""
