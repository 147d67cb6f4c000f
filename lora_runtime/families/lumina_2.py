"""Lumina 2: the text before the picture in the main layers, each row with as many words as it has.

The original fuses q, k and v, with three times as many rows of q.
"""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

from lora_runtime.families.base import IN_TWO_CALLS, Family, Given, Reading, Span, pieces
from lora_runtime.families.dialect import Dialect
from lora_runtime.families.layout import Layout, Table, inside
from lora_runtime.families.reading import patched, picture

__all__ = ["LUMINA_2", "LUMINA_2_NAMES"]

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

LUMINA_2_NAMES = Dialect("lumina", translations=_LUMINA.translations, fusions=_LUMINA.fusions)


def _read(given: Given) -> Reading | None:
    found = patched()(given)
    if found is None or found.grid is None:
        return found
    mask = given.get("encoder_attention_mask")
    lengths = None if mask is None else given.once(mask, lambda tensor: tensor.sum(1).tolist())
    if not lengths or len(set(lengths)) > 1:  # the picture begins elsewhere in each row
        return replace(found, sequences=((picture(found.grid),),))
    words = Span("text", int(lengths[0]))
    return replace(found, sequences=((picture(found.grid),), (words, picture(found.grid))))


LUMINA_2 = Family(
    "Lumina2",
    classes=("Lumina2Transformer2DModel",),
    titles=("lumina",),
    marks=(pieces(width=("layers.0.attention.", (2304,))),),
    read=_read,
    no_place=r"context_refiner|time_caption_embed|cap_embedder|t_embedder|norm\d?\.linear|norm_out\.linear",
    guidance=IN_TWO_CALLS,
    dialects=(LUMINA_2_NAMES,),
)
