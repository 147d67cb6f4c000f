"""Mochi: video and text in layers of their own.

The original fuses q, k and v of each side; diffusers has gate and value the other way round.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import MappingProxyType

from lora_runtime.families.base import Family, pieces
from lora_runtime.families.dialect import Dialect, Part
from lora_runtime.families.layout import Layout, Table, inside
from lora_runtime.families.reading import patched

__all__ = ["MOCHI", "MOCHI_NAMES"]

_BLOCK: Table = {
    "mod_x": "norm1.linear",
    "mod_y": "norm1_context.linear",
    "attn.qkv_x": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "attn.q_norm_x": "attn1.norm_q",
    "attn.k_norm_x": "attn1.norm_k",
    "attn.proj_x": "attn1.to_out.0",
    "attn.qkv_y": ("attn1.add_q_proj", "attn1.add_k_proj", "attn1.add_v_proj"),
    "attn.q_norm_y": "attn1.norm_added_q",
    "attn.k_norm_y": "attn1.norm_added_k",
    "attn.proj_y": "attn1.to_add_out",
    "mlp_x.w1": "ff.net.0.proj",
    "mlp_x.w2": "ff.net.2",
    "mlp_y.w1": "ff_context.net.0.proj",
    "mlp_y.w2": "ff_context.net.2",
}
_ORIGINAL = ("t5_y_embedder.to_kv", "blocks.0.attn.qkv_x")
_DIFFUSERS = ("patch_embed.proj", "time_embed.pooler.to_kv")
_LAYOUT = Layout(
    original=_ORIGINAL,
    diffusers=_DIFFUSERS,
    table=MappingProxyType(
        {
            "x_embedder.proj": "patch_embed.proj",
            "t_embedder.mlp.0": "time_embed.timestep_embedder.linear_1",
            "t_embedder.mlp.2": "time_embed.timestep_embedder.linear_2",
            "t5_y_embedder.to_kv": "time_embed.pooler.to_kv",
            "t5_y_embedder.to_q": "time_embed.pooler.to_q",
            "t5_y_embedder.to_out": "time_embed.pooler.to_out",
            "t5_yproj": "time_embed.caption_proj",
            "final_layer.mod": "norm_out.linear",
            "final_layer.linear": "proj_out",
            **inside("blocks.#", "transformer_blocks.#", _BLOCK),
        }
    ),
    swapped=frozenset({"final_layer.mod", "blocks.#.mlp_x.w1", "blocks.#.mlp_y.w1"}),
)
# The last block has no text after it, and diffusers another kind of norm.
_LAST_BLOCK = {"blocks.#.mod_y": "transformer_blocks.#.norm1_context.linear_1"}
_LAST = Layout(_ORIGINAL, _DIFFUSERS, MappingProxyType(_LAST_BLOCK))


def _translations(paths: Sequence[str]) -> Iterator[tuple[str, str, Part]]:
    """Yield each module's name in the other layout, for q, k and v one a part; nothing for other models."""
    yield from _LAYOUT.translations(paths)
    yield from _LAST.translations(paths)


MOCHI_NAMES = Dialect("mochi", translations=_translations, fusions=_LAYOUT.fusions)


MOCHI = Family(
    "Mochi",
    classes=("MochiTransformer3DModel",),
    titles=("mochi",),
    marks=(pieces("blocks.0.attn.qkv.x"),),
    read=patched(),
    no_place=r"time_embed|norm1\.linear|t5_y_embedder|mod_[xy]|qkv_y|proj_y",
    dialects=(MOCHI_NAMES,),
)
