"""Krea 2: the original's names."""

from __future__ import annotations

from types import MappingProxyType

from lora_runtime.dialects.base import Dialect
from lora_runtime.dialects.layout import Layout, inside

__all__ = ["KREA"]

_KREA_BLOCK = {
    "attn.wq": "attn.to_q",
    "attn.wk": "attn.to_k",
    "attn.wv": "attn.to_v",
    "attn.wo": "attn.to_out.0",
    "attn.gate": "attn.to_gate",
    "mlp.gate": "ff.gate",
    "mlp.up": "ff.up",
    "mlp.down": "ff.down",
}
_KREA = Layout(
    original=("first", "tproj.1", "blocks.0.attn.wq"),
    diffusers=("img_in", "time_mod_proj", "transformer_blocks.0.attn.to_gate"),
    table=MappingProxyType(
        {
            "first": "img_in",
            "tmlp.0": "time_embed.linear_1",
            "tmlp.2": "time_embed.linear_2",
            "tproj.1": "time_mod_proj",
            "txtmlp.1": "txt_in.linear_1",
            "txtmlp.3": "txt_in.linear_2",
            "txtfusion.projector": "text_fusion.projector",
            "last.linear": "final_layer.linear",
            **inside("blocks.#", "transformer_blocks.#", _KREA_BLOCK),
            **inside("txtfusion.layerwise_blocks.#", "text_fusion.layerwise_blocks.#", _KREA_BLOCK),
            **inside("txtfusion.refiner_blocks.#", "text_fusion.refiner_blocks.#", _KREA_BLOCK),
        }
    ),
)
KREA = Dialect("krea 2", translations=_KREA.translations)
