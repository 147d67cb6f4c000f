"""How the family of a live denoiser is called."""

from __future__ import annotations

from torch import nn

from lora_runtime.families import UNKNOWN
from lora_runtime.families import family_of as record_of

__all__ = ["family_of", "is_mmdit"]


def family_of(denoiser: nn.Module | None) -> str:
    """Return "SD1", "SDXL", "Wan", … as `metadata.family` calls it, "SDXL refiner", or "unknown"."""
    record = record_of(denoiser)
    return UNKNOWN if record is None else record.name


def is_mmdit(denoiser: nn.Module | None) -> bool:
    """Return whether this is SD3's denoiser in its original form."""
    return isinstance(getattr(denoiser, "joint_blocks", None), nn.ModuleList)
