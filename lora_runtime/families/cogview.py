"""CogView 3+ and 4: the text before the picture in every layer of a block; 4's feed-forward sees each by itself."""

from __future__ import annotations

from lora_runtime.families.base import IN_TWO_CALLS, Family
from lora_runtime.families.reading import patched

__all__ = ["COGVIEW_3", "COGVIEW_4"]

COGVIEW_3 = Family(
    "CogView3",
    classes=("CogView3PlusTransformer2DModel",),
    titles=("cogview3",),
    read=patched("text first"),
    no_place=r"text_proj|norm1\.linear|time_condition_embed",
)
COGVIEW_4 = Family(
    "CogView4",
    classes=("CogView4Transformer2DModel",),
    titles=("cogview4",),
    read=patched("text first", alone=True),
    no_place=r"text_proj|norm1\.linear|time_condition_embed",
    guidance=IN_TWO_CALLS,
)
