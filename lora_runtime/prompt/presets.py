"""Block weights by name: the common ones, and those in the files of sd-webui-lora-block-weight.

A name stands for a list ("1,0,0,…") or for element rules ("IN05-OUT05:attn:0"): whatever has ":" in it is the latter.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from lora_runtime.blocks import LAYOUTS
from lora_runtime.prompt.excerpt import quote

__all__ = ["PresetFile", "common_presets", "load_presets"]

MOST_BYTES = 1 << 20
# Names that the plots of sd-webui-lora-block-weight fill in: they stand for no list.
RESERVED = frozenset({"XYZ", "ZYX"})


class PresetFile(NamedTuple):
    """What a file of presets holds, and why other lines of it were left out."""

    presets: Mapping[str, str]
    reasons: tuple[str, ...]


@cache
def common_presets() -> Mapping[str, str]:
    """Return the presets of sd-webui-lora-block-weight, and those of the Inspire Pack for SDXL in the same layout."""
    text = files("lora_runtime.prompt").joinpath("block_presets.txt").read_text(encoding="utf-8")
    return read_presets(text).presets


def load_presets(path: str | Path) -> PresetFile:
    """Return the presets of a file such as lbwpresets.txt or elempresets.txt; of two of one name the last.

    A line that cannot be used has a reason instead, and a file of more than 1 MiB nothing else. OSError if the file
    cannot be read.
    """
    with Path(path).open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        return PresetFile(MappingProxyType({}), (f"{Path(path).name} has more than {MOST_BYTES} bytes",))
    return read_presets(content.decode("utf-8-sig", "replace"))


def read_presets(text: str) -> PresetFile:
    """Return the presets of a file's text.

    A list is a line NAME:1,0,…; element rules are an entry NAME:BLOCKS:ELEMENTS:WEIGHT, which may go on with rules
    BLOCKS:ELEMENTS:WEIGHT after commas and in the lines that follow, up to an empty one. A line with "#" is a comment,
    and so is one without ":".
    """
    presets: dict[str, str] = {}
    reasons: list[str] = []
    entry = ""  # the element rules that the next line may go on with
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.strip().rstrip(",")
        colons = line.count(":")
        if "#" in line or not colons:
            entry = entry if line else ""
        elif colons % 2 == 0:
            if entry:
                presets[entry] += f",{line}"
            else:
                reasons.append(f"line {number}: {quote(line)} has no name before its blocks")
        else:
            name, _, body = line.partition(":")
            name = name.strip()
            entry = name if colons > 1 else ""
            if reason := _misfit(name, body.strip(), is_list=colons == 1):
                reasons.append(f"line {number}: {reason}")
                entry = ""
            else:
                presets[name] = body.strip()
    return PresetFile(MappingProxyType(presets), tuple(reasons))


def _misfit(name: str, body: str, *, is_list: bool) -> str:
    """Return why a preset cannot be used, or ''."""
    if not name:
        return "there is no name"
    if is_list and name in RESERVED:
        return f"{quote(name)} is a name that plots fill in"
    count = body.count(",") + 1
    if is_list and count not in LAYOUTS:
        return f"{quote(name)} has {count} numbers; lists have {', '.join(map(str, LAYOUTS))}"
    return ""
