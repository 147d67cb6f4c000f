"""Wan 2.1 and 2.2, VACE, Fun and Animate, and what is built on them: SkyReels 2, ChronoEdit.

Wan 2.2 has two experts, `transformer` for much noise and `transformer_2` for little.
"""

from __future__ import annotations

from lora_runtime.families.base import IN_TWO_CALLS, Family, pieces
from lora_runtime.families.reading import patched

__all__ = ["WAN"]

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
    dialects=("wan",),
)
