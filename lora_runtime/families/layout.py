"""Two layouts of one model, the original's and diffusers', as one table that is read in both directions.

The table has the original's names and what diffusers has there. `#` stands for the number of a block. Where the
original has one weight for several of diffusers', they are listed in the order of its rows; OneTrainer trains them one
by one, under the original's name and their place in the row: `qkv.0`, `qkv.1`, `qkv.2`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from lora_runtime.families.dialect import WHOLE, Part

__all__ = ["SWAPPED", "Layout", "Table", "inside"]

SWAPPED = Part(swapped=True)

_BLOCK = re.compile(r"(\D*)(\d+)(\..+)")

Table = Mapping[str, str | tuple[str, ...]]
_Names = Mapping[str, Sequence[tuple[str, Part]]]  # what else a module is called, and what of its weight that is


@dataclass(frozen=True)
class Layout:
    """The table of one family.

    `original` and `diffusers` are paths that only models of this family in the one or the other layout have all of.
    Fused weights have equal runs of rows, unless `shares` says how many units each run has. `aliases` are names that
    neither of the models has, but some files, and what diffusers has there.
    """

    original: tuple[str, ...]
    diffusers: tuple[str, ...]
    table: Table
    shares: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # by the original's name
    swapped: frozenset[str] = frozenset()  # the original's names of what has the halves of its rows the other way round
    aliases: Table = field(default_factory=dict)

    def translations(self, paths: Sequence[str]) -> Iterator[tuple[str, str, Part]]:
        """Yield the other layout's name for each module, and what of its weight that is; nothing for other models."""
        names: _Names = {}
        if all(mark in paths for mark in self.original):
            names = self._for_original
        elif all(mark in paths for mark in self.diffusers):
            names = self._for_diffusers
        for path in paths if names else ():
            entry, number = _entry(path, names)
            for name, part in names.get(entry, ()):
                yield path, name.replace("#", number), part

    def fusions(self, paths: Sequence[str]) -> Iterator[tuple[tuple[str, ...], str]]:
        """Yield the modules that the original has in one weight, and its name for it; nothing for other models."""
        if not all(mark in paths for mark in self.diffusers):
            return
        there = set(paths)
        for path in paths:
            entry, number = _entry(path, self._fused)
            for name, theirs in self._fused.get(entry, ()):
                together = tuple(part.replace("#", number) for part in theirs)
                if there.issuperset(together):
                    yield together, name.replace("#", number)

    @cached_property
    def _for_original(self) -> _Names:
        """The original's name → names."""
        place: dict[str, tuple[str, Part]] = {}  # of what diffusers has: in what of the original's, which part
        names: dict[str, list[tuple[str, Part]]] = defaultdict(list)
        for ours, theirs in self.table.items():
            if isinstance(theirs, str):
                place[theirs] = ours, SWAPPED if ours in self.swapped else WHOLE
                continue
            shares = self.shares.get(ours, (1,) * len(theirs))
            for index, name in enumerate(theirs):
                place[name] = ours, Part(sum(shares[:index]), sum(shares), span=shares[index])
        for theirs, (ours, part) in place.items():
            names[ours].append((theirs, part))
        for name, found in self._all_aliases():
            ours, first = place[found[0]]
            span = sum(place[each][1].span for each in found)
            part = first if len(found) == 1 else Part(first.index, first.count, span=span)
            names[ours].append((name, WHOLE if part.span == part.count and not part.swapped else part))
        return names

    @cached_property
    def _for_diffusers(self) -> _Names:
        """diffusers' name → names."""
        names: dict[str, list[tuple[str, Part]]] = defaultdict(list)
        for ours, theirs in self.table.items():
            if isinstance(theirs, str):
                names[theirs].append((ours, SWAPPED if ours in self.swapped else WHOLE))
        for name, found in self._all_aliases():
            if len(found) == 1:
                names[found[0]].append((name, WHOLE))
        return names

    @cached_property
    def _fused(self) -> Mapping[str, Sequence[tuple[str, tuple[str, ...]]]]:
        """diffusers' name of the first rows → the name of the fused weight, and diffusers' names of all rows."""
        fused: dict[str, list[tuple[str, tuple[str, ...]]]] = defaultdict(list)
        for name, theirs in (*self.table.items(), *self.aliases.items()):
            if not isinstance(theirs, str):
                fused[theirs[0]].append((name, theirs))
        return fused

    def _all_aliases(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Yield (name, diffusers' names) of the aliases, and of the rows that OneTrainer numbers."""
        for name, theirs in self.aliases.items():
            yield name, (theirs,) if isinstance(theirs, str) else theirs
        for ours, theirs in self.table.items():
            for index, each in enumerate(() if isinstance(theirs, str) else theirs):
                yield f"{ours}.{index}", (each,)


def _entry(path: str, names: Container[str]) -> tuple[str, str]:
    """Return the name under which a path is in the table, and the number of its block."""
    match = None if path in names else _BLOCK.fullmatch(path)
    return (path, "") if match is None else (f"{match[1]}#{match[3]}", match[2])


def inside(original: str, diffusers: str, table: Table) -> dict[str, str | tuple[str, ...]]:
    """Return the table of a level, with the level's name in each layout before those of what is in it."""
    return {
        f"{original}.{name}": f"{diffusers}.{theirs}"
        if isinstance(theirs, str)
        else tuple(f"{diffusers}.{part}" for part in theirs)
        for name, theirs in table.items()
    }
