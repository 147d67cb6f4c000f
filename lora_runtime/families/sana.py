"""Sana, Sana Sprint and Sana Video: the picture alone, with text by cross attention."""

from __future__ import annotations

from lora_runtime.families.base import Family
from lora_runtime.families.reading import patched

__all__ = ["SANA", "SANA_VIDEO"]

SANA = Family(
    "Sana",
    classes=("SanaTransformer2DModel",),
    titles=("sana",),
    read=patched(),
    no_place=r"caption_projection|time_embed|guidance_embedder",
    dialects=("pixart",),
)
SANA_VIDEO = Family(
    "unknown",
    classes=("SanaVideoTransformer3DModel",),
    read=patched(),
    no_place=r"caption_projection|time_embed",
)
