"""PixArt alpha and sigma: the picture alone, with text by cross attention."""

from __future__ import annotations

from lora_runtime.families.base import Family
from lora_runtime.families.reading import patched

__all__ = ["PIXART"]

PIXART = Family(
    "PixArt",
    classes=("PixArtTransformer2DModel",),
    titles=("pixart",),
    read=patched(),
    no_place=r"caption_projection|adaln_single",
    dialects=("pixart",),
)
