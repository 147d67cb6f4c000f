"""Chroma: Flux without its modulations, which one small network makes for all blocks."""

from __future__ import annotations

from types import MappingProxyType

from lora_runtime.families.base import IN_TWO_CALLS, Family, pieces
from lora_runtime.families.dialect import Dialect
from lora_runtime.families.flux import SHARED_WITH_CHROMA, SHARES
from lora_runtime.families.layout import Layout
from lora_runtime.families.reading import with_ids

__all__ = ["CHROMA", "CHROMA_NAMES"]

_GUIDANCE = "distilled_guidance_layer"
_CHROMA = Layout(
    original=("double_blocks.0.img_attn.qkv", f"{_GUIDANCE}.layers.0.in_layer"),
    diffusers=("single_transformer_blocks.0.proj_mlp", f"{_GUIDANCE}.layers.0.linear_1"),
    table=MappingProxyType(
        {
            **SHARED_WITH_CHROMA,
            f"{_GUIDANCE}.layers.#.in_layer": f"{_GUIDANCE}.layers.#.linear_1",
            f"{_GUIDANCE}.layers.#.out_layer": f"{_GUIDANCE}.layers.#.linear_2",
        }
    ),
    shares=SHARES,
)
CHROMA_NAMES = Dialect("chroma", translations=_CHROMA.translations, fusions=_CHROMA.fusions)


CHROMA = Family(
    "Chroma",
    classes=("ChromaTransformer2DModel",),
    titles=("chroma",),
    marks=(pieces("distilled.guidance.layer"),),
    read=with_ids,
    no_place=r"distilled_guidance_layer",
    guidance=IN_TWO_CALLS,
    dialects=(CHROMA_NAMES,),
)
