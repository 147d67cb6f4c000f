"""Qwen-Image 2.1: the original's names."""

from __future__ import annotations

from types import MappingProxyType

from lora_runtime.dialects.base import Dialect
from lora_runtime.dialects.layout import Layout, Table, inside

__all__ = ["QWEN_IMAGE"]

_QWEN_IMAGE_MLP: Table = {"gate_up": ("gate_layer", "proj")}
_QWEN_IMAGE = Layout(
    original=("transformer_blocks.0.img_mlp.gate_up", "transformer_blocks.0.img_mlp.out"),
    diffusers=("transformer_blocks.0.img_mlp.gate_layer", "transformer_blocks.0.img_mlp.proj"),
    table=MappingProxyType(inside("transformer_blocks.#.img_mlp", "transformer_blocks.#.img_mlp", _QWEN_IMAGE_MLP)),
)
QWEN_IMAGE = Dialect("qwen-image 2.1", translations=_QWEN_IMAGE.translations, fusions=_QWEN_IMAGE.fusions)
