"""Families whose files are known, and whose calls nobody has described yet: rows and regions are refused on them."""

from __future__ import annotations

from lora_runtime.families.base import Family, pieces

__all__ = ["ACE_STEP", "IDEOGRAM_4", "MINIMAX_H3"]

IDEOGRAM_4 = Family(
    "Ideogram4",
    classes=("Ideogram4Transformer2DModel",),
    titles=("ideogram",),
    marks=(pieces(width=("layers.0.attention.", (4608,))),),
    dialects=("newer",),
)
MINIMAX_H3 = Family("MiniMax-H3", ("MiniMaxH3Transformer3DModel",), ("minimax",), dialects=("newer",))
ACE_STEP = Family("ACE-Step", ("AceStepTransformer1DModel",), ("ace-step", "ace_step", "acestep"), dialects=("newer",))
