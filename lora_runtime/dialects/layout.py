"""Two layouts of one model, the original's and diffusers', as one table that is read in both directions.

The table has the original's names and what diffusers has there. `#` stands for the number of a block. Where the
original has one weight for several of diffusers', they are listed in the order of its rows; OneTrainer trains them one
by one, under the original's name and their place in the row: `qkv.0`, `qkv.1`, `qkv.2`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from lora_runtime.dialects.base import WHOLE, Part

__all__ = ["SWAPPED", "Layout"]

SWAPPED = Part(swapped=True)

_BLOCK = re.compile(r"(.*?\.)(\d+)(\..+)")


@dataclass(frozen=True)
class Layout:
    """The table of one family.

    `original` and `diffusers` are paths that only models of this family in the one or the other layout have all of.
    Fused weights have equal runs of rows, unless `shares` says how many units each run has.
    """

    original: tuple[str, ...]
    diffusers: tuple[str, ...]
    table: Mapping[str, str | tuple[str, ...]]
    shares: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # by the original's name
    swapped: frozenset[str] = frozenset()  # the original's names of what has the halves of its rows the other way round

    def translations(self, paths: Sequence[str]) -> Iterator[tuple[str, str, Part]]:
        """Yield the other layout's name for each module, and what of its weight that is; nothing for other models."""
        if all(mark in paths for mark in self.original):
            for path in paths:
                name, number = self._entry(path, self.table)
                for theirs, part in self._parts(name):
                    yield path, theirs.replace("#", number), part
        elif all(mark in paths for mark in self.diffusers):
            for path in paths:
                theirs, number = self._entry(path, self._back)
                for name in self._back.get(theirs, ()):
                    yield path, name.replace("#", number), SWAPPED if name in self.swapped else WHOLE

    def fusions(self, paths: Sequence[str]) -> Iterator[tuple[tuple[str, ...], str]]:
        """Yield the modules that the original has in one weight, and its name for it; nothing for other models."""
        if not all(mark in paths for mark in self.diffusers):
            return
        there = set(paths)
        for path in paths:
            theirs, number = self._entry(path, self._first)
            for name in self._first.get(theirs, ()):
                together = tuple(part.replace("#", number) for part in self.table[name])
                if there.issuperset(together):
                    yield together, name.replace("#", number)

    def _parts(self, name: str) -> Iterator[tuple[str, Part]]:
        """Yield diffusers' names for what the original calls so, and what of the original's weight each is."""
        theirs = self.table.get(name, ())
        if isinstance(theirs, str):
            yield theirs, SWAPPED if name in self.swapped else WHOLE
            return
        shares = self.shares.get(name, (1,) * len(theirs))
        start = 0
        for index, (part_name, units) in enumerate(zip(theirs, shares, strict=True)):
            part = Part(start, sum(shares), span=units)
            yield part_name, part
            yield f"{name}.{index}", part
            start += units

    @staticmethod
    def _entry(path: str, table: Mapping[str, object]) -> tuple[str, str]:
        """Return the name under which a path is in a table, and the number of its block."""
        match = None if path in table else _BLOCK.fullmatch(path)
        return (path, "") if match is None else (f"{match[1]}#{match[3]}", match[2])

    @cached_property
    def _back(self) -> Mapping[str, tuple[str, ...]]:
        """diffusers' name → the original's for just that weight."""
        back: dict[str, tuple[str, ...]] = {}
        for name, theirs in self.table.items():
            if isinstance(theirs, str):
                back[theirs] = (*back.get(theirs, ()), name)
            else:
                for index, part in enumerate(theirs):
                    back[part] = (*back.get(part, ()), f"{name}.{index}")
        return back

    @cached_property
    def _first(self) -> Mapping[str, tuple[str, ...]]:
        """diffusers' name → the original's for the weights of which it is the first rows."""
        first: dict[str, tuple[str, ...]] = {}
        for name, theirs in self.table.items():
            if not isinstance(theirs, str):
                first[theirs[0]] = (*first.get(theirs[0], ()), name)
        return first
