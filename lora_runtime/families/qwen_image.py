"""Qwen-Image, and its models that edit: pictures and text in layers of their own, what is edited behind the picture.

The call says the size of each picture. Qwen-Image-Layered paints several of one size, all but the last.
"""

from __future__ import annotations

from types import MappingProxyType

from lora_runtime.families.base import IN_TWO_CALLS, Family, Given, Grid, Reading, pieces
from lora_runtime.families.dialect import Dialect
from lora_runtime.families.layout import Layout, Table, inside
from lora_runtime.families.reading import packed

__all__ = ["QWEN_IMAGE", "QWEN_IMAGE_NAMES"]

_QWEN_IMAGE_MLP: Table = {"gate_up": ("gate_layer", "proj")}
_QWEN_IMAGE = Layout(
    original=("transformer_blocks.0.img_mlp.gate_up", "transformer_blocks.0.img_mlp.out"),
    diffusers=("transformer_blocks.0.img_mlp.gate_layer", "transformer_blocks.0.img_mlp.proj"),
    table=MappingProxyType(inside("transformer_blocks.#.img_mlp", "transformer_blocks.#.img_mlp", _QWEN_IMAGE_MLP)),
)
QWEN_IMAGE_NAMES = Dialect("qwen-image 2.1", translations=_QWEN_IMAGE.translations, fusions=_QWEN_IMAGE.fusions)


def _read(given: Given) -> Reading | None:
    shapes = given.get("img_shapes")
    if not shapes:
        return packed(given, None)
    first = list(shapes[0]) if isinstance(shapes[0], list) else [shapes[0]]
    frames, height, width = map(int, first[0])
    if given.setting("use_layer3d_rope", False):
        frames *= max(1, len(first) - 1)
    return packed(given, Grid(height, width, frames))


QWEN_IMAGE = Family(
    "Qwen-Image",
    classes=("QwenImageTransformer2DModel",),
    titles=("qwen",),
    marks=(pieces("transformer.blocks.0.img.mlp"), pieces("transformer.blocks.0.img.mod")),
    read=_read,
    no_place=r"time_text_embed|img_mod",
    no_rows=r"time_text_embed|img_mod",  # with `zero_cond_t` they see every row twice, a second time for what is edited
    guidance=IN_TWO_CALLS,
    dialects=(QWEN_IMAGE_NAMES,),
)
