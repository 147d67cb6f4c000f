"""Mochi: video and text in layers of their own."""

from __future__ import annotations

from lora_runtime.families.base import Family, pieces
from lora_runtime.families.reading import patched

__all__ = ["MOCHI"]

MOCHI = Family(
    "Mochi",
    classes=("MochiTransformer3DModel",),
    titles=("mochi",),
    marks=(pieces("blocks.0.attn.qkv.x"),),
    read=patched(),
    no_place=r"time_embed|norm1\.linear|t5_y_embedder|mod_[xy]|qkv_y|proj_y",
    dialects=("mochi",),
)
