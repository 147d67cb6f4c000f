"""How long things take, on a machine that others use too: rounds go on until the lowest times of each agree.

A program beside this one only ever adds to a time, so the least is the nearest to the truth, and the second least tells
how near: where the two lowest of a case agree, two rounds were left alone. This imports no torch.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

__all__ = ["AGREE", "Limits", "Times", "Timing", "seconds", "synchronize", "timed", "timing_of"]

AGREE = 0.03  # the second lowest is at most this much above the lowest

Way = TypeVar("Way", bound=Hashable)
T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """At most so many rounds, and none that begins after so many seconds; `least` are run in any case.

    Two times may agree by chance, both disturbed: that they do counts only from `settled` rounds on.
    """

    rounds: int
    seconds: float
    least: int = 4
    settled: int = 8


@dataclass(frozen=True)
class Timing:
    """The lowest time; `spread` is how far the second lowest lies above it, as a fraction; None after one round."""

    seconds: float
    spread: float | None
    rounds: int

    @property
    def agrees(self) -> bool:
        """Whether the two lowest times are the same for all purposes."""
        return self.spread is not None and self.spread <= AGREE


def timing_of(times: Sequence[float]) -> Timing:
    """Return what the times of all rounds come to."""
    lowest = sorted(times)[:2]
    return Timing(lowest[0], lowest[1] / lowest[0] - 1 if len(lowest) > 1 else None, len(times))


class Times(Generic[Way]):
    """The times of several ways, measured in the same rounds: whatever disturbs one of them disturbs the others."""

    def __init__(self, limits: Limits) -> None:
        """Start without any."""
        self._limits = limits
        self._found: dict[Way, list[float]] = {}
        self._shuffle = random.Random(0)

    def rounds(self) -> Iterator[bool]:
        """Yield for each round whether it counts: the first warms up. Ends when all agree, or at a limit."""
        yield False
        began = time.perf_counter()
        for number in range(1, self._limits.rounds + 1):
            yield True
            if number >= self._limits.least and time.perf_counter() - began > self._limits.seconds:
                return
            if number >= self._limits.settled and all(timing.agrees for timing in self.timings().values()):
                return

    def shuffled(self, items: Iterable[T]) -> list[T]:
        """Return these in another order each time: nobody always comes after the same."""
        order = list(items)
        self._shuffle.shuffle(order)
        return order

    def add(self, way: Way, taken: float) -> None:
        """Take down one time."""
        self._found.setdefault(way, []).append(taken)

    def timings(self) -> dict[Way, Timing]:
        """Return the result for each way so far."""
        return {way: timing_of(times) for way, times in self._found.items()}


def timed(ways: Mapping[Way, Callable[[], object]], limits: Limits) -> dict[Way, Timing]:
    """Return the timing of each way, all measured in the same rounds."""
    times: Times[Way] = Times(limits)
    for counts in times.rounds():
        for way in times.shuffled(ways):
            taken = seconds(ways[way])
            if counts:
                times.add(way, taken)
    return times.timings()


def seconds(run: Callable[[], object]) -> float:
    """Return how long one call takes, all work on the device done."""
    synchronize()
    start = time.perf_counter()
    run()
    synchronize()
    return time.perf_counter() - start


def synchronize() -> None:
    """Wait until the accelerator, if one is in use, has done what it was given."""
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    elif torch.backends.mps.is_available():
        torch.mps.synchronize()
