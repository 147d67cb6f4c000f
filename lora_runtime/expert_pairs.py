"""Two files that are one LoRA: trained for the two denoisers of Wan 2.2, and named alike but for "high" and "low".

The word stands anywhere in the path: style_high_noise, style-HIGH-v2, HighNoise_style, styleHN, high/style,
style/high_noise_model. The name of the pair is what is left: style, style-v2.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from lora_runtime.folder import Entry, is_of_folder

__all__ = ["Pair", "pairs_of"]

_FAMILY = "Wan"  # the one that has two denoisers; in others "high" and "low" are words as any
_SIDE = re.compile(
    r"(?:(?<![A-Za-z0-9])|(?<=[a-z0-9])(?=[HL]))(?i:(high|hn)|low|ln)(?i:[ _.-]?noise)?(?![a-z])"  # not of "highlight"
)
_DIVIDERS = " _-."
# What a file is called whose folder has the name.
_NAMELESS = frozenset({"", "model", "lora"})


class Pair(NamedTuple):
    """The file for the denoiser of much noise, and that for the one of little."""

    high: Entry
    low: Entry


def pairs_of(entries: Iterable[Entry]) -> Iterator[tuple[str, Pair]]:
    """Yield each name of each pair: its path, and the last part of it."""
    halves: dict[tuple[Path, str, str], dict[bool, Entry]] = {}
    names: dict[tuple[Path, str, str], str] = {}
    for entry in entries:
        if entry.family != _FAMILY:
            continue
        parent, _, stem = entry.relative.rpartition("/")
        path = parent if parent and is_of_folder(stem) else entry.relative
        for match in _SIDE.finditer(path):
            before, after = path[: match.start()], path[match.end() :]
            key = (entry.folder, before.casefold(), after.casefold())
            halves.setdefault(key, {}).setdefault(match[1] is not None, entry)
            names.setdefault(key, _name(before, after))
    for key, half in halves.items():
        if len(half) == 2:
            pair = Pair(half[True], half[False])
            yield from ((name, pair) for name in dict.fromkeys((names[key], names[key].rpartition("/")[2])))


def _name(before: str, after: str) -> str:
    """Return the path of a pair, by what stands before and after the word for its side."""
    folder, _, head = before.rpartition("/")
    tail, slash, rest = after.partition("/")
    divider = head[-1:] if head[-1:] in _DIVIDERS else ""
    head, tail = head.strip(_DIVIDERS), tail.strip(_DIVIDERS)
    stem = f"{head}{divider}{tail}" if head and tail else head or tail
    parts = [part for part in (folder, stem, rest) if part]
    if not slash and stem.lower() in _NAMELESS and folder:
        parts = [folder]
    return "/".join(parts)
