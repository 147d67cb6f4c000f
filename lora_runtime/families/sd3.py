"""Stable Diffusion 3 and 3.5: pictures and text in layers of their own."""

from __future__ import annotations

from lora_runtime.families.base import Family, pieces
from lora_runtime.families.reading import patched

__all__ = ["SD3"]

SD3 = Family(
    "SD3",
    classes=("SD3Transformer2DModel", "MMDiT"),
    titles=("sd3", "stable-diffusion-3", "stable-diffusion-v3"),
    marks=(
        pieces("joint.blocks"),
        pieces(width=("transformer.blocks.0.attn.add.", (1536, 2432))),
    ),
    read=patched(),
    no_place=r"context_block|pos_embed\.proj$|[ty]_embedder\.",
    dialects=("mmdit",),
)
