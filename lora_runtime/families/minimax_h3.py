"""MiniMax-H3. Nobody has described its calls yet: rows and regions are refused."""

from __future__ import annotations

from types import MappingProxyType

from lora_runtime.families.base import Family
from lora_runtime.families.dialect import Dialect
from lora_runtime.families.layout import Layout, Table, inside

__all__ = ["MINIMAX_H3", "MINIMAX_H3_NAMES"]

_MINIMAX_BLOCK: Table = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attn.qkv_proj": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "attn.out_proj": "attn.to_out.0",
    "attn.q_norm": "attn.norm_q",
    "attn.k_norm": "attn.norm_k",
    "mlp.fc1": "ff.net.0.proj",  # gate and value, the other way round in diffusers
    "mlp.fc2": "ff.net.2",
    "adaln_proj.linear": "adaln_proj.linear",
}
_MINIMAX = Layout(
    original=("audio_patch_proj", "token_refiner.blocks.0.attn.qkv_proj"),
    diffusers=("audio_proj_in", "token_refiner.refiner_blocks.0.attn.to_q"),
    table=MappingProxyType(
        {
            "video_patch_proj": "proj_in",
            "audio_patch_proj": "audio_proj_in",
            "condition_proj": "context_embedder",
            "time_embedder.proj_in": "time_embedder.linear_1",
            "time_embedder.proj_out": "time_embedder.linear_2",
            "final_layer.norm": "norm_out.norm",
            "final_layer.adaln_proj.linear": "norm_out.linear",
            "final_layer.video_out": "proj_out",
            "final_layer.audio_out": "audio_proj_out",
            **inside("blocks.#", "transformer_blocks.#", _MINIMAX_BLOCK),
            **inside("token_refiner.blocks.#", "token_refiner.refiner_blocks.#", _MINIMAX_BLOCK),
        }
    ),
    swapped=frozenset({"blocks.#.mlp.fc1", "token_refiner.blocks.#.mlp.fc1"}),
)
MINIMAX_H3_NAMES = Dialect("minimax h3", translations=_MINIMAX.translations, fusions=_MINIMAX.fusions)

MINIMAX_H3 = Family("MiniMax-H3", ("MiniMaxH3Transformer3DModel",), ("minimax",), dialects=(MINIMAX_H3_NAMES,))
