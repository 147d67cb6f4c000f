"""The lines of bench.json, and what is to be measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.timing import Limits, Timing, timing_of

__all__ = ["MAIN", "VARIANTS", "Options", "Record", "Variant", "merged", "named", "record_of"]

MAIN = "3x32"


@dataclass(frozen=True)
class Variant:
    """What is put on the model: `count` files of `rank`, on the linears or on the convolutions."""

    count: int
    rank: int
    who: tuple[str, ...]
    convolutions: bool = False


VARIANTS = {
    MAIN: Variant(3, 32, ("ours", "unmerged", "fuse", "loop", "floor", "bare")),
    "10x16": Variant(10, 16, ("ours", "fuse", "loop", "floor")),
    "conv": Variant(3, 16, ("ours", "fuse", "loop", "floor"), convolutions=True),
}


@dataclass(frozen=True)
class Record:
    """One line of bench.json; `spread` and `rounds` as in a Timing."""

    case: str
    dtype: str
    who: str
    seconds: float | None = None
    bytes: int | None = None
    spread: float | None = None
    rounds: int | None = None


@dataclass(frozen=True)
class Options:
    """What a worker process needs to know; travels as JSON."""

    device: str
    dtype: str
    variant: str
    folder: str
    quick: bool
    rounds: int
    seconds: float
    who: str = ""

    @property
    def limits(self) -> Limits:
        """When rounds end."""
        return Limits(self.rounds, self.seconds)


def record_of(case: str, dtype: str, who: str, timing: Timing) -> Record:
    """Return the line of one timing."""
    return Record(case, dtype, who, timing.seconds, None, timing.spread, timing.rounds)


def named(case: str, variant: str) -> str:
    """Return the name of a case in bench.json: the main variant's has nothing behind it."""
    return case if variant == MAIN else f"{case}-{variant}"


def merged(records: Iterable[Record]) -> list[Record]:
    """Return one record for each case, dtype and who: the timing of its measurements, and the least bytes."""
    found: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        found.setdefault((record.case, record.dtype, record.who), []).append(record)
    return [_one(key, group) for key, group in found.items()]


def _one(key: tuple[str, str, str], group: list[Record]) -> Record:
    size = min((record.bytes for record in group if record.bytes is not None), default=None)
    measured = [record for record in group if record.seconds is not None]
    if len(measured) == 1:  # of many rounds within one process
        return Record(*key, measured[0].seconds, size, measured[0].spread, measured[0].rounds)
    if not measured:
        return Record(*key, None, size)
    timing = timing_of([record.seconds for record in measured if record.seconds is not None])
    return Record(*key, timing.seconds, size, timing.spread, timing.rounds)
