"""HunyuanDiT: the picture alone, with text by cross attention."""

from __future__ import annotations

from lora_runtime.families.base import Family, pieces
from lora_runtime.families.reading import patched

__all__ = ["HUNYUAN_DIT"]

HUNYUAN_DIT = Family(
    "HunyuanDiT",
    classes=("HunyuanDiT2DModel",),
    titles=("hunyuan-dit", "hydit"),
    marks=(pieces("blocks.0.attn1.Wqkv"),),
    read=patched(),
    no_place=r"text_embedder|kv_proj|default_modulation|extra_embedder|pooler",
    dialects=("hunyuan",),
)
