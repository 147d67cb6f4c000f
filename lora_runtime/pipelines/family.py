"""Which family a live denoiser is of: the width of the text that it attends to tells."""

from __future__ import annotations

from torch import nn

__all__ = ["family_of"]

_BY_TEXT_WIDTH = {768: "SD1", 1024: "SD2", 2048: "SDXL", 1280: "SDXL refiner"}


def family_of(denoiser: nn.Module | None) -> str:
    """Return "SD1", "SD2", "SDXL", "SDXL refiner" or "unknown"."""
    width = getattr(getattr(denoiser, "config", None), "cross_attention_dim", None)
    if isinstance(width, (list, tuple)) and len(set(width)) == 1:
        width = width[0]
    return _BY_TEXT_WIDTH.get(width, "unknown") if isinstance(width, int) else "unknown"
