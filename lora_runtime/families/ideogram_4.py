"""Ideogram 4. Nobody has described its calls yet: rows and regions are refused."""

from __future__ import annotations

from types import MappingProxyType

from lora_runtime.families.base import Family, pieces
from lora_runtime.families.dialect import Dialect
from lora_runtime.families.layout import Layout, Table, inside

__all__ = ["IDEOGRAM_4", "IDEOGRAM_4_NAMES"]

_IDEOGRAM_ATTENTION: Table = {"qkv": ("to_q", "to_k", "to_v"), "o": "to_out.0"}
_IDEOGRAM = Layout(
    original=("llm_cond_proj", "layers.0.attention.qkv"),
    diffusers=("llm_cond_proj", "layers.0.attention.to_q"),
    table=MappingProxyType(inside("layers.#.attention", "layers.#.attention", _IDEOGRAM_ATTENTION)),
)
IDEOGRAM_4_NAMES = Dialect(
    "ideogram 4",
    MappingProxyType({"transformer": ("conditional_transformer.",)}),
    translations=_IDEOGRAM.translations,
    fusions=_IDEOGRAM.fusions,
)

IDEOGRAM_4 = Family(
    "Ideogram4",
    classes=("Ideogram4Transformer2DModel",),
    titles=("ideogram",),
    marks=(pieces(width=("layers.0.attention.", (4608,))),),
    dialects=(IDEOGRAM_4_NAMES,),
)
