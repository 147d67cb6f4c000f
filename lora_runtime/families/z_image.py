"""Z-Image: a list of pictures, (c, frames, h, w) each, before the words of a list of texts; the prompt's side first.

Pictures and texts are filled up to multiples of 32 tokens, and the rows of a batch to the longest.

The original fuses q, k and v.
"""

from __future__ import annotations

from math import prod
from types import MappingProxyType

from lora_runtime.families.base import PROMPT_FIRST, Family, Given, Grid, Guidance, Reading, Span, pieces
from lora_runtime.families.dialect import Dialect
from lora_runtime.families.layout import Layout, Table, inside
from lora_runtime.families.reading import picture, shape_of

__all__ = ["Z_IMAGE", "Z_IMAGE_NAMES"]

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

Z_IMAGE_NAMES = Dialect("z-image", translations=_Z_IMAGE.translations, fusions=_Z_IMAGE.fusions)


_MULTIPLE = 32


def _up(tokens: int) -> int:
    return -(-tokens // _MULTIPLE) * _MULTIPLE


def _read(given: Given) -> Reading | None:
    pictures, texts = given.get("x"), given.get("cap_feats")
    if not isinstance(pictures, (list, tuple)) or not pictures:
        return None
    count = len(pictures)
    shapes = {shape_of(each) for each in pictures}
    if len(shapes) > 1 or len(shape := shapes.pop()) != 4:  # lists of lists: pictures that are edited
        return Reading(count, None, texts, None, ())
    patch, deep = given.get("patch_size") or 2, given.get("f_patch_size") or 1
    grid = Grid(shape[2] // patch, shape[3] // patch, max(1, shape[1] // deep))
    tokens = prod(grid)
    filled = (picture(grid), Span("reference", _up(tokens) - tokens)) if _up(tokens) > tokens else (picture(grid),)
    words = max((_up(len(text)) for text in texts), default=0) if isinstance(texts, (list, tuple)) else 0
    return Reading(count, None, texts, grid, (filled, (*filled, Span("text", words))))


Z_IMAGE = Family(
    "Z-Image",
    classes=("ZImageTransformer2DModel",),
    titles=("z-image", "z_image", "zimage"),
    marks=(pieces(width=("layers.0.attention.", (3840,))),),
    read=_read,
    no_place=r"context_refiner|cap_embedder|t_embedder|all_x_embedder|siglip_|adaLN",
    no_rows=r"cap_embedder|siglip_embedder",  # the words of all rows behind each other
    guidance=PROMPT_FIRST,
    pipelines=MappingProxyType(
        {"ZImageOmniPipeline": Guidance(("positive", "negative"), reason="its rows are lists of pictures")}
    ),
    dialects=(Z_IMAGE_NAMES,),
)
