"""Wan 2.1 and 2.2, VACE, Fun and Animate, and what is built on them: SkyReels 2, ChronoEdit.

Wan 2.2 has two experts, `transformer` for much noise and `transformer_2` for little.

Most trainers write in the original's names; Wan-Fun's writes `lora_unet__blocks_0_…`.
"""

from __future__ import annotations

from types import MappingProxyType

from lora_runtime.families.base import IN_TWO_CALLS, Family, pieces
from lora_runtime.families.dialect import DENOISERS, Dialect
from lora_runtime.families.layout import Layout, Table, inside
from lora_runtime.families.reading import patched

__all__ = ["WAN", "WAN_NAMES"]

_BLOCK = {
    "self_attn.q": "attn1.to_q",
    "self_attn.k": "attn1.to_k",
    "self_attn.v": "attn1.to_v",
    "self_attn.o": "attn1.to_out.0",
    "self_attn.norm_q": "attn1.norm_q",
    "self_attn.norm_k": "attn1.norm_k",
    "cross_attn.q": "attn2.to_q",
    "cross_attn.k": "attn2.to_k",
    "cross_attn.v": "attn2.to_v",
    "cross_attn.o": "attn2.to_out.0",
    "cross_attn.norm_q": "attn2.norm_q",
    "cross_attn.norm_k": "attn2.norm_k",
    "cross_attn.k_img": "attn2.add_k_proj",
    "cross_attn.v_img": "attn2.add_v_proj",
    "cross_attn.norm_k_img": "attn2.norm_added_k",
    "norm3": "norm2",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    "modulation": "scale_shift_table",
}
_FACE: Table = {
    "linear1_q": "to_q",
    "linear1_kv": ("to_k", "to_v"),
    "linear2": "to_out",
    "q_norm": "norm_q",
    "k_norm": "norm_k",
}
_LAYOUT = Layout(
    original=("blocks.0.self_attn.q", "time_projection.1"),
    diffusers=("blocks.0.attn1.to_q", "condition_embedder.time_proj"),
    table=MappingProxyType(
        {
            "time_embedding.0": "condition_embedder.time_embedder.linear_1",
            "time_embedding.2": "condition_embedder.time_embedder.linear_2",
            "time_projection.1": "condition_embedder.time_proj",
            "text_embedding.0": "condition_embedder.text_embedder.linear_1",
            "text_embedding.2": "condition_embedder.text_embedder.linear_2",
            "img_emb.proj.0": "condition_embedder.image_embedder.norm1",
            "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
            "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
            "img_emb.proj.4": "condition_embedder.image_embedder.norm2",
            "head.head": "proj_out",
            "head.modulation": "scale_shift_table",
            **inside("blocks.#", "blocks.#", _BLOCK),
            **inside("vace_blocks.#", "vace_blocks.#", {**_BLOCK, "before_proj": "proj_in", "after_proj": "proj_out"}),
            **inside("face_adapter.fuser_blocks.#", "face_adapter.#", _FACE),
        }
    ),
)

WAN_NAMES = Dialect(
    "wan",
    MappingProxyType(dict.fromkeys(DENOISERS, ("lora_unet__",))),
    translations=_LAYOUT.translations,
    fusions=_LAYOUT.fusions,
)


_ENDS = ("lora", "diff", "hada", "lokr")

WAN = Family(
    "Wan",
    classes=(
        "WanTransformer3DModel",
        "WanVACETransformer3DModel",
        "WanAnimateTransformer3DModel",
        "SkyReelsV2Transformer3DModel",
        "ChronoEditTransformer3DModel",
    ),
    titles=("wan",),
    marks=(  # Cosmos has `q_proj` there
        *(pieces(f"blocks.0.cross.attn.{side}.{end}") for side in "qkvo" for end in _ENDS),
        *map(pieces, ("blocks.0.cross.attn.k.img", "blocks.0.self.attn.o.", "blocks.0.ffn.")),
    ),
    read=patched(),
    no_place=r"condition_embedder|motion_encoder|face_encoder|face_adapter|text_embedding|img_emb",
    guidance=IN_TWO_CALLS,
    dialects=(WAN_NAMES,),
)
