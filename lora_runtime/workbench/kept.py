"""What a verb kept of the changes, what it left out and why: the part of its result that people read."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lora_runtime.blocks import block_of
from lora_runtime.dialects import component_of, normalise
from lora_runtime.workbench.writing import File

__all__ = ["OTHER", "Outcome", "Tally", "block_of_name", "in_order", "path_of_name"]

_NUMBER = re.compile(r"_(?=\d+(?:_|$))|(?<=_\d)_|(?<=_\d\d)_|(?<=_\d\d\d)_")
_MIDDLE = re.compile(r"(?<![a-z])(mid_block|middle_block|encoder_block|conv_in)[_.]")
_START = re.compile(
    r"(?:down|up|input|output|double|single|transformer|single_transformer)_blocks\.|mid|conv_in|encoder"
)
OTHER = "other"  # of modules in no block
_ROUNDING = 1e-12  # of a share


@dataclass(frozen=True)
class Outcome:
    """What was written, and what it has of what it was made of.

    `kept` is the share of the energy, which is the squared Frobenius norm ‖Δ‖² summed over modules: 1 where nothing
    was cut. The relative error of the change is √(1 − kept). `rounding` is ‖written − meant‖ / ‖meant‖, what the dtype
    of the file cost. `unchanged` maps reasons to the number of modules that were taken over as they were, `left_out`
    the names of modules to the reasons why the file has nothing for them.
    """

    path: Path
    size: int  # bytes
    sha256: str
    modules: int
    ranks: tuple[int, ...]  # the different ones, from small to large
    kept: float
    blocks: Mapping[str, float]
    rounding: float
    unchanged: Mapping[str, int]
    left_out: Mapping[str, str]
    notes: tuple[str, ...] = ()

    @property
    def error(self) -> float:
        """The relative error of the whole change, from the cut alone."""
        return math.sqrt(max(0.0, 1.0 - self.kept))


@dataclass
class Tally:
    """Counts for an Outcome while a file is made."""

    ranks: set[int] = field(default_factory=set)
    unchanged: Counter[str] = field(default_factory=Counter)
    left_out: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    modules: int = 0
    _energy: dict[str, float] = field(default_factory=dict)  # by block
    _kept: dict[str, float] = field(default_factory=dict)
    _rounding: float = 0.0

    def add(self, stem: str, energy: float, kept: float, *, rank: int | None = None, rounding: float = 0.0) -> None:
        """Count one module: the energy of its change, what is kept of it, and the squared norm of the rounding."""
        self._count(stem, energy, kept)
        self._rounding += rounding
        self.modules += 1
        if rank is not None:
            self.ranks.add(rank)

    def drop(self, stem: str, energy: float, reason: str) -> None:
        """Count a module of which nothing is kept."""
        self._count(stem, energy, 0.0)
        self.left_out[stem] = reason

    def _count(self, stem: str, energy: float, kept: float) -> None:
        block = block_of_name(stem)
        self._energy[block] = self._energy.get(block, 0.0) + energy
        self._kept[block] = self._kept.get(block, 0.0) + kept

    def outcome(self, file: File) -> Outcome:
        """Return the record of a file that was written."""
        blocks = {
            block: _share(self._kept[block], energy)
            for block, energy in sorted(self._energy.items(), key=lambda item: in_order(item[0]))
        }
        kept = sum(self._kept.values())
        return Outcome(
            file.path,
            file.size,
            file.sha256,
            self.modules,
            tuple(sorted(self.ranks)),
            _share(kept, sum(self._energy.values())),
            blocks,
            math.sqrt(self._rounding / kept) if kept > 0 else 0.0,
            dict(self.unchanged),
            dict(self.left_out),
            tuple(self.notes),
        )


def _share(kept: float, energy: float) -> float:
    # Sums of squares that are taken in another order differ in their last digits.
    return kept / energy if kept < energy * (1 - _ROUNDING) else 1.0


_ORDER = ("BASE", "CLIP", "T5", "IN", "D", "M", "S", "OUT")


def in_order(block: str) -> tuple[int, str]:
    """Return what sorts names of blocks as the data goes through them."""
    word = block.rstrip("0123456789")
    return (_ORDER.index(word) if word in _ORDER else len(_ORDER), block)


def path_of_name(stem: str) -> str:
    """Return a file's name for a module with the dots that matter to blocks: "down_blocks.0.attentions.1.…".

    A guess for people and for block weights: the live model's own path is known only where a model is.
    """
    dotted = _MIDDLE.sub(r"\1.", _NUMBER.sub(".", normalise(stem))).replace("encoder_block.", "encoder.block.")
    start = _START.search(dotted)
    return dotted if start is None else dotted[start.start() :]


def block_of_name(stem: str) -> str:
    """Return the block that a file's name for a module belongs to, "other" where it is in none."""
    return block_of(component_of(stem) or "", path_of_name(stem)) or OTHER
