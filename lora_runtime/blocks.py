"""The blocks of a model by the names that block weights use for them: BASE, IN04, M00, OUT11; D07 and S12 of Flux.

The names are those of sd-webui-lora-block-weight, which counts the blocks of LDM's UNet. diffusers' UNet has the same
blocks in rows of layers; a row is three blocks there, so the numbers hold for UNets of two layers a row, as those of
SD 1 and 2 and SDXL have, and their inpainting and refining relatives.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache, lru_cache

__all__ = ["FLUX", "LAYOUTS", "UNET", "block_of", "blocks_in", "expanded", "names_between"]


def _numbered(word: str, *numbers: int) -> tuple[str, ...]:
    return tuple(f"{word}{number:02d}" for number in numbers)


# Every block in the order of the data's way through the model: the order of lists and of ranges.
UNET = ("BASE", *_numbered("IN", *range(12)), "M00", *_numbered("OUT", *range(12)))
FLUX = ("CLIP", "T5", "IN", *_numbered("D", *range(19)), *_numbered("S", *range(38)), "OUT")

# What the numbers of a list stand for, by how many they are. CLIP is BASE by another name: see `block_of`.
LAYOUTS: Mapping[int, tuple[str, ...]] = {
    12: ("BASE", *_numbered("IN", 4, 5, 7, 8), "M00", *_numbered("OUT", *range(6))),
    17: ("BASE", *_numbered("IN", 1, 2, 4, 5, 7, 8), "M00", *_numbered("OUT", *range(3, 12))),
    20: ("BASE", *_numbered("IN", *range(9)), "M00", *_numbered("OUT", *range(9))),
    26: UNET,
    61: FLUX,
}

_DIFFUSERS = re.compile(
    r"(?:^|\.)(?:(?P<row>down|up)_blocks\.(?P<block>\d+)\.(?P<kind>resnets|attentions|downsamplers|upsamplers)\.(?P<n>\d+)"
    r"|(?P<middle>mid_block)|(?P<first>conv_in))(?:\.|$)"
)
_LDM = re.compile(r"(?:^|\.)(?:(?P<row>input|output)_blocks\.(?P<number>\d+)|(?P<middle>middle_block))(?:\.|$)")
_FLUX = re.compile(
    r"(?:(?P<double>transformer_blocks|double_blocks)|(?P<single>single_transformer_blocks|single_blocks))"
    r"\.(?P<number>\d+)(?:\.|$)"
)
_FLUX_ENDS = re.compile(
    r"(?:(?P<first>x_embedder|context_embedder|time_text_embed|(?:img|txt|time|vector|guidance)_in)"
    r"|norm_out|proj_out|final_layer)(?:\.|$)"
)
_T5 = re.compile(r"(?:^|\.)(?:encoder\.block\.\d+|encoder\.final_layer_norm|shared)(?:\.|$)")


@lru_cache(maxsize=16384)  # each module of a model is asked for again with each tag
def block_of(component: str, path: str) -> str | None:
    """Return the block of the module at `path` in a component ("unet", "transformer", "text_encoder_2"), or None.

    A module may belong to no block: the UNet's time embedding, and everything of models that are neither a UNet nor
    built as Flux is. The names of modules may be diffusers', LDM's or BFL's. A T5 is "T5", every other text encoder
    "BASE", Flux's CLIP too: nothing in its path tells it from SD's.
    """
    if "encoder" in component:
        return "T5" if _T5.search(path) else "BASE"
    return _block_of_unet(path) or _block_of_flux(path)


@cache
def expanded(count: int) -> tuple[tuple[str, int | None], ...]:
    """Return the blocks that a list of `count` numbers is about, each with its place in the list.

    The place is None, which stands for the number 0, for a UNet's blocks that short lists leave out.
    """
    places = {name: place for place, name in enumerate(LAYOUTS[count])}
    every = FLUX if count == len(FLUX) else UNET
    return tuple((name, places.get(name)) for name in every)


def blocks_in(modules: Iterable[tuple[str, str]]) -> list[str]:
    """Return the blocks that a model has, in their order; `modules` are component and path of each of its modules."""
    found = {block_of(component, path) for component, path in modules}
    # CLIP is BASE by another name, and IN and OUT stand in one of the orders only.
    return [name for name in dict.fromkeys((*UNET, *FLUX)) if name in found]


def names_between(first: str, last: str) -> tuple[str, ...]:
    """Return the blocks from `first` to `last`, both included, () if the two are not in this order in one model."""
    for order in (UNET, FLUX):
        if first in order and last in order:
            return order[order.index(first) : order.index(last) + 1]
    return ()


def _block_of_unet(path: str) -> str | None:
    if match := _LDM.search(path):
        return "M00" if match["middle"] else _known("IN" if match["row"] == "input" else "OUT", int(match["number"]))
    match = _DIFFUSERS.search(path)
    if match is None:
        return None
    if match["middle"]:
        return "M00"
    if match["first"]:
        return "IN00"
    layer = 2 if match["kind"].endswith("samplers") else int(match["n"])
    row = 3 * int(match["block"]) + layer
    return _known("IN", 1 + row) if match["row"] == "down" else _known("OUT", row)


def _block_of_flux(path: str) -> str | None:
    if match := _FLUX.match(path):
        return _known("D" if match["double"] else "S", int(match["number"]))
    if match := _FLUX_ENDS.match(path):
        return "IN" if match["first"] else "OUT"
    return None


def _known(word: str, number: int) -> str | None:
    name = f"{word}{number:02d}"
    return name if name in UNET or name in FLUX else None
