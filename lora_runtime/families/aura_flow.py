"""AuraFlow: pictures and text in layers of their own, then text and eight registers before the picture."""

from __future__ import annotations

from lora_runtime.families.base import Family, pieces
from lora_runtime.families.reading import patched

__all__ = ["AURA_FLOW"]

AURA_FLOW = Family(
    "AuraFlow",
    classes=("AuraFlowTransformer2DModel",),
    titles=("auraflow",),
    marks=(pieces("joint.transformer.blocks"), pieces("double.layers.0.")),
    read=patched("text first", extra=8),
    dialects=("aura_flow",),
)
