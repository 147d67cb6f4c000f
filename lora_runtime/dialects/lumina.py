"""Lumina 2 and Z-Image: the originals' names. Both fuse q, k and v; Lumina 2 has three times as many rows of q."""

from __future__ import annotations

from types import MappingProxyType

from lora_runtime.dialects.base import Dialect
from lora_runtime.dialects.layout import Layout, Table, inside

__all__ = ["LUMINA", "Z_IMAGE"]

_STACKS = ("layers.#", "noise_refiner.#", "context_refiner.#")
_LUMINA_BLOCK: Table = {
    "attention.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "attention.out": "attn.to_out.0",
    "attention.q_norm": "attn.norm_q",
    "attention.k_norm": "attn.norm_k",
    "feed_forward.w1": "feed_forward.linear_1",
    "feed_forward.w2": "feed_forward.linear_2",
    "feed_forward.w3": "feed_forward.linear_3",
    "attention_norm2": "norm2",
}
_MODULATED: Table = {**_LUMINA_BLOCK, "adaLN_modulation.1": "norm1.linear", "attention_norm1": "norm1.norm"}
_PLAIN: Table = {**_LUMINA_BLOCK, "attention_norm1": "norm1"}
_LUMINA = Layout(
    original=("cap_embedder.1", "layers.0.attention.qkv", "layers.0.adaLN_modulation.1"),
    diffusers=("time_caption_embed.caption_embedder.1", "layers.0.attn.to_q"),
    table=MappingProxyType(
        {
            "t_embedder.mlp.0": "time_caption_embed.timestep_embedder.linear_1",
            "t_embedder.mlp.2": "time_caption_embed.timestep_embedder.linear_2",
            "cap_embedder.0": "time_caption_embed.caption_embedder.0",
            "cap_embedder.1": "time_caption_embed.caption_embedder.1",
            "final_layer.adaLN_modulation.1": "norm_out.linear_1",
            "final_layer.linear": "norm_out.linear_2",
            **inside("layers.#", "layers.#", _MODULATED),
            **inside("noise_refiner.#", "noise_refiner.#", _MODULATED),
            **inside("context_refiner.#", "context_refiner.#", _PLAIN),
        }
    ),
    shares=MappingProxyType({f"{stack}.attention.qkv": (3, 1, 1) for stack in _STACKS}),
)

_Z_IMAGE_BLOCK: Table = {
    "attention.qkv": ("attention.to_q", "attention.to_k", "attention.to_v"),
    "attention.out": "attention.to_out.0",
    "attention.q_norm": "attention.norm_q",
    "attention.k_norm": "attention.norm_k",
}
_Z_IMAGE = Layout(
    original=("layers.0.attention.qkv", "context_refiner.0.attention.qkv", "layers.0.adaLN_modulation.0"),
    diffusers=("layers.0.attention.to_q", "context_refiner.0.attention.to_q", "layers.0.adaLN_modulation.0"),
    table=MappingProxyType(
        {
            # diffusers numbers these by the size of a patch; published models have one.
            "x_embedder": "all_x_embedder.2-1",
            "final_layer.linear": "all_final_layer.2-1.linear",
            "final_layer.adaLN_modulation.1": "all_final_layer.2-1.adaLN_modulation.1",
            **inside("layers.#", "layers.#", _Z_IMAGE_BLOCK),
            **inside("noise_refiner.#", "noise_refiner.#", _Z_IMAGE_BLOCK),
            **inside("context_refiner.#", "context_refiner.#", _Z_IMAGE_BLOCK),
        }
    ),
)

LUMINA = Dialect("lumina", translations=_LUMINA.translations, fusions=_LUMINA.fusions)
Z_IMAGE = Dialect("z-image", translations=_Z_IMAGE.translations, fusions=_Z_IMAGE.fusions)
