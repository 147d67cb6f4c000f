"""Lumina Next: the picture alone, with text by cross attention; the prompt's side comes first."""

from __future__ import annotations

from lora_runtime.families.base import PROMPT_FIRST, Family
from lora_runtime.families.reading import patched

__all__ = ["LUMINA"]

LUMINA = Family(
    "Lumina",
    classes=("LuminaNextDiT2DModel",),
    read=patched(),
    no_place=r"time_caption_embed|norm1\.linear|attn2\.to_[kv]",
    guidance=PROMPT_FIRST,
)
