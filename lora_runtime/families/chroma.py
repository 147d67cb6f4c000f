"""Chroma: Flux without its modulations, which one small network makes for all blocks."""

from __future__ import annotations

from lora_runtime.families.base import IN_TWO_CALLS, Family, pieces
from lora_runtime.families.reading import with_ids

__all__ = ["CHROMA"]

CHROMA = Family(
    "Chroma",
    classes=("ChromaTransformer2DModel",),
    titles=("chroma",),
    marks=(pieces("distilled.guidance.layer"),),
    read=with_ids,
    no_place=r"distilled_guidance_layer",
    guidance=IN_TWO_CALLS,
    dialects=("flux",),
)
