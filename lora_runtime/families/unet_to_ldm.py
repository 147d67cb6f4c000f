"""The names of the original UNet (LDM, SGM), for a UNet of diffusers.

kohya trains SDXL on SGM's UNet, ComfyUI names all UNets so. The original numbers its blocks in one row, which is walked
forward here over whatever blocks the live UNet has:

    conv_in                     input_blocks.0.0
    down_blocks.0.resnets.0     input_blocks.1.0            down_blocks.0.attentions.0   input_blocks.1.1
    down_blocks.0.downsamplers.0.conv  input_blocks.3.0.op  (with two layers in a block)
    mid_block.resnets.0/1       middle_block.0/.2           mid_block.attentions.0       middle_block.1
    up_blocks.0.resnets.0       output_blocks.0.0           up_blocks.0.attentions.0     output_blocks.0.1
    up_blocks.0.upsamplers.0.conv      output_blocks.2.2.conv, or .1.conv in a block without attention
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence

__all__ = ["RESNET", "TOP", "original_names"]

TOP = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "class_embedding": "label_emb",
    "class_embedding.linear_1": "label_emb.0.0",
    "class_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_PART = re.compile(r"((?:down|up)_blocks\.\d+|mid_block)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")

_Parts = dict[str, dict[str, set[int]]]  # block → kind → indices, as in {"mid_block": {"resnets": {0, 1}}}


def original_names(paths: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the original's name of each module of a UNet; nothing for other models."""
    matches = {path: match for path in paths if (match := _PART.fullmatch(path))}
    if not matches:
        return
    parts: _Parts = defaultdict(lambda: defaultdict(set))
    for match in matches.values():
        parts[match[1]][match[2]].add(int(match[3]))
    names = dict(_part_names(parts))
    for path in paths:
        if path in TOP:
            yield path, TOP[path]
        elif path in matches:
            block, kind, index, inner = matches[path].groups()
            name = names.get((block, kind, int(index)))
            if name is not None:
                yield path, f"{name}.{_inner_name(kind, inner)}"


def _inner_name(kind: str, inner: str) -> str:
    if kind == "resnets":
        return RESNET.get(inner, inner)
    if kind == "downsamplers":
        return "op" if inner == "conv" else inner
    return inner


def _part_names(parts: _Parts) -> Iterator[tuple[tuple[str, str, int], str]]:
    """Yield the original's name for each (block, kind, index)."""
    yield from _row_names(parts, "down_blocks", "input_blocks", "downsamplers", first=1)
    yield from _row_names(parts, "up_blocks", "output_blocks", "upsamplers", first=0)
    # The middle alternates: resnet, attention, resnet, attention, resnet …
    step = 2 if parts["mid_block"]["attentions"] else 1
    for index in parts["mid_block"]["resnets"]:
        yield ("mid_block", "resnets", index), f"middle_block.{step * index}"
    for index in parts["mid_block"]["attentions"]:
        yield ("mid_block", "attentions", index), f"middle_block.{2 * index + 1}"


def _row_names(
    parts: _Parts, blocks: str, row: str, sampler: str, *, first: int
) -> Iterator[tuple[tuple[str, str, int], str]]:
    """Yield the names of one row of blocks, numbered from `first`."""
    number = first
    for block in sorted((name for name in parts if name.startswith(blocks)), key=lambda name: int(name.split(".")[1])):
        kinds = parts[block]
        for index in kinds["resnets"]:
            yield (block, "resnets", index), f"{row}.{number + index}.0"
        for index in kinds["attentions"]:
            yield (block, "attentions", index), f"{row}.{number + index}.1"
        number += max(kinds["resnets"], default=-1) + 1
        if kinds[sampler]:
            if sampler == "downsamplers":  # a place of its own in the row
                yield (block, sampler, 0), f"{row}.{number}.0"
                number += 1
            else:  # behind the last layer
                yield (block, sampler, 0), f"{row}.{number - 1}.{2 if kinds['attentions'] else 1}"
