"""Ideogram 4: the original's names."""

from __future__ import annotations

from types import MappingProxyType

from lora_runtime.dialects.base import Dialect
from lora_runtime.dialects.layout import Layout, Table, inside

__all__ = ["IDEOGRAM"]

_IDEOGRAM_ATTENTION: Table = {"qkv": ("to_q", "to_k", "to_v"), "o": "to_out.0"}
_IDEOGRAM = Layout(
    original=("llm_cond_proj", "layers.0.attention.qkv"),
    diffusers=("llm_cond_proj", "layers.0.attention.to_q"),
    table=MappingProxyType(inside("layers.#.attention", "layers.#.attention", _IDEOGRAM_ATTENTION)),
)
IDEOGRAM = Dialect(
    "ideogram 4",
    MappingProxyType({"transformer": ("conditional_transformer.",)}),
    translations=_IDEOGRAM.translations,
    fusions=_IDEOGRAM.fusions,
)
