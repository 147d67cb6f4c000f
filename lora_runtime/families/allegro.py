"""Allegro and Latte: video models with text by cross attention; Latte's layers over time see one place each."""

from __future__ import annotations

from lora_runtime.families.base import Family
from lora_runtime.families.reading import patched

__all__ = ["ALLEGRO", "LATTE"]

ALLEGRO = Family(
    "Allegro",
    classes=("AllegroTransformer3DModel",),
    titles=("allegro",),
    read=patched(),
    no_place=r"caption_projection|adaln_single",
)
LATTE = Family(
    "Latte",
    classes=("LatteTransformer3DModel",),
    titles=("latte",),
    read=patched(),
    no_place=r"caption_projection|adaln_single|temporal_transformer_blocks",
)
