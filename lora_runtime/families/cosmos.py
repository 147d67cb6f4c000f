"""Cosmos 1, 2 and 2.5, and Anima, which is built as they are: the video alone, with text by cross attention."""

from __future__ import annotations

from lora_runtime.families.base import IN_TWO_CALLS, Family, pieces
from lora_runtime.families.reading import patched

__all__ = ["ANIMA", "COSMOS", "COSMOS_OR_ANIMA"]

COSMOS = Family("Cosmos", titles=("cosmos",), dialects=("cosmos",))
ANIMA = Family("Anima", titles=("anima",), marks=(pieces("llm.adapter.blocks"),), dialects=("cosmos",))
# A live model may be either.
COSMOS_OR_ANIMA = Family(
    "unknown",
    classes=("CosmosTransformer3DModel",),
    read=patched(),
    no_place=r"crossattn_proj|img_context_proj|time_embed|norm\d?\.linear|norm_out\.linear|llm_adapter",
    guidance=IN_TWO_CALLS,
    dialects=("cosmos",),
)
