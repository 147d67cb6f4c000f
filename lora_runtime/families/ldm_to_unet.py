"""The names of diffusers, for a UNet of LDM or SGM.

The other direction of `unet_to_ldm.py`, and like it a walk over whatever blocks the live UNet has. A sampler ends a
block:

    input_blocks.1.0                down_blocks.0.resnets.0     input_blocks.1.1    down_blocks.0.attentions.0
    input_blocks.3.0.op             down_blocks.0.downsamplers.0.conv
    input_blocks.4.0                down_blocks.1.resnets.0
    middle_block.0/.2               mid_block.resnets.0/1       middle_block.1      mid_block.attentions.0
    output_blocks.2.1.conv          up_blocks.0.upsamplers.0.conv
    output_blocks.3.0               up_blocks.1.resnets.0       output_blocks.3.1   up_blocks.1.attentions.0
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence

from lora_runtime.families.dialect import WHOLE, Part
from lora_runtime.families.unet_to_ldm import RESNET, TOP

__all__ = ["diffusers_names"]

_PLACE = re.compile(r"(input_blocks|output_blocks)\.(\d+)\.(\d+)(?:\.(.+))?|(middle_block)\.(\d+)\.(.+)")
_INSIDE_RESNET = {theirs: ours for ours, theirs in RESNET.items()}
_SAMPLERS = {"op": "downsamplers", "conv": "upsamplers"}

_Place = tuple[str, int, int]  # row, number in it, child; the middle is one block with a row of children
_Insides = dict[_Place, set[str]]  # what is at each place, as in {("input_blocks", 3, 0): {"op"}}


def diffusers_names(paths: Sequence[str]) -> Iterator[tuple[str, str, Part]]:
    """Yield diffusers' path for each module of an original UNet; nothing for other models."""
    if not any(path.startswith("input_blocks.") for path in paths):
        return
    places = {path: found for path in paths if (found := _place(path)) is not None}
    insides: _Insides = defaultdict(set)
    for place, inner in places.values():
        insides[place].add(inner)
    names = dict(_names(insides))
    there = set(paths)
    for ours, theirs in TOP.items():
        if theirs in there:
            yield theirs, ours, WHOLE
    for path, (place, inner) in places.items():
        if place in names:
            kind = names[place].rpartition(".")[0].rpartition(".")[2]
            yield path, f"{names[place]}.{_inner_name(kind, inner)}", WHOLE


def _place(path: str) -> tuple[_Place, str] | None:
    match = _PLACE.fullmatch(path)
    if match is None:
        return None
    row, number, child, inner, middle, middle_child, middle_inner = match.groups()
    if middle is not None:
        return (middle, 0, int(middle_child)), middle_inner
    return (row, int(number), int(child)), inner or ""


def _inner_name(kind: str, inner: str) -> str:
    if kind == "resnets":
        return _INSIDE_RESNET.get(inner, inner)
    return "conv" if kind == "downsamplers" else inner


def _names(insides: _Insides) -> Iterator[tuple[_Place, str]]:
    """Yield diffusers' path for what is at each place."""
    yield from _row_names(insides, "input_blocks", "down_blocks", first=1)
    yield from _row_names(insides, "output_blocks", "up_blocks", first=0)
    counts = {"resnets": 0, "attentions": 0}
    for place in sorted(place for place in insides if place[0] == "middle_block"):
        kind = _kind(insides[place])
        if kind in counts:
            yield place, f"mid_block.{kind}.{counts[kind]}"
            counts[kind] += 1


def _row_names(insides: _Insides, row: str, blocks: str, *, first: int) -> Iterator[tuple[_Place, str]]:
    """Yield the names of one row, in which blocks of layers are divided by their samplers."""
    block = layer = 0
    numbers = {number for name, number, _ in insides if name == row}
    for number in range(first, max(numbers, default=-1) + 1):
        ends = False
        for place in sorted(place for place in insides if place[:2] == (row, number)):
            kind = _kind(insides[place])
            ends = ends or kind.endswith("samplers")
            yield place, f"{blocks}.{block}.{kind}.{0 if kind.endswith('samplers') else layer}"
        if ends or number not in numbers:  # a sampler without weights is not in the paths
            block, layer = block + 1, 0
        else:
            layer += 1


def _kind(inside: set[str]) -> str:
    """Return what diffusers calls the list that a part with these modules is in."""
    if any(inner.startswith(("in_layers", "emb_layers", "out_layers")) for inner in inside):
        return "resnets"
    return next((kind for mark, kind in _SAMPLERS.items() if mark in inside), "attentions")
