"""How large the new factors may be: a rank, a share of the energy, a ratio of singular values, or a file's size."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from lora_runtime.workbench.differences import Difference
from lora_runtime.workbench.low_rank import Spectrum, taken_apart

__all__ = ["NO_ROOM", "Limit", "limit_of", "shared_out", "spectrum_within"]

NO_ROOM = "no rank of it is worth its bytes at this size"
_FIRST = 32  # terms of a first sketch where no rank is asked for


@dataclass(frozen=True)
class Limit:
    """What each module's rank is chosen by; with none of these, the whole rank stays."""

    rank: int | None = None  # at most so many singular values
    energy: float | None = None  # as few as have this share of ‖Δ‖², from 0 to 1
    ratio: float | None = None  # those that are at least the greatest divided by this

    @property
    def cuts(self) -> bool:
        """Whether anything is asked for."""
        return (self.rank, self.energy, self.ratio) != (None, None, None)

    def of(self, values: Tensor, energy: float) -> int:
        """Return the rank for singular values (k,), the greatest first, of a matrix with that squared norm."""
        count = int((values > 0).sum())
        if self.energy is not None:
            have = values.square().cumsum(0)
            # In float64 the last sum may be a little less than the energy itself.
            wanted = self.energy * min(energy, float(have[-1])) if self.energy == 1.0 else self.energy * energy
            count = min(count, int((have < wanted).sum()) + 1)
        if self.ratio is not None:
            count = min(count, int((values * self.ratio >= values[0]).sum()))
        return count if self.rank is None else min(count, self.rank)


def limit_of(
    rank: int | None = None, energy: float | None = None, ratio: float | None = None, *, several: bool = False
) -> Limit:
    """Return what is asked for, checked; ValueError where a number is out of range or, unless `several`, two are."""
    given = [name for name, value in (("rank", rank), ("energy", energy), ("ratio", ratio)) if value is not None]
    if len(given) > 1 and not several:
        raise ValueError(f"{' and '.join(given)} exclude each other: give one")
    if rank is not None and rank < 1:
        raise ValueError(f"rank {rank}: give a whole number from 1")
    if energy is not None and not 0 < energy <= 1:
        raise ValueError(f"energy {energy:g}: give the share of ‖Δ‖² to keep, above 0 and at most 1")
    if ratio is not None and not (ratio >= 1 and math.isfinite(ratio)):
        raise ValueError(f"ratio {ratio:g}: give a number from 1, the greatest singular value by the least to keep")
    return Limit(rank, energy, ratio)


def spectrum_within(matrix: Tensor | Difference, limit: Limit, *, exact: bool = False) -> Spectrum:
    """Return as much of the SVD of a matrix (out, columns) as the limit needs: by sketches, or with `exact` in full.

    Where no rank is asked for, sketches grow until they have all that is.
    """
    if exact or not limit.cuts:
        return taken_apart(matrix)
    if limit.rank is not None:
        return taken_apart(matrix, limit.rank)
    count, lesser = _FIRST, min(matrix.shape)
    while True:
        found = taken_apart(matrix, count)
        if found.values.numel() == lesser or limit.of(found.values, found.energy) < count:
            return found
        count *= 2


def shared_out(spectra: dict[str, Tensor], costs: dict[str, int], room: int) -> dict[str, int]:
    """Return each module's rank when `room` bytes are shared out where a byte keeps most of the energy.

    `spectra`: singular values by module, the greatest first; `costs`: bytes of one rank. Values of a module fall, so
    taking the best of all bytes first never leaves out one that comes before another.
    """
    order = sorted(
        (
            (float(value) ** 2 / costs[name], -index, name)
            for name, values in spectra.items()
            for index, value in enumerate(values)
            if value > 0
        ),
        reverse=True,
    )
    ranks = dict.fromkeys(spectra, 0)
    closed: set[str] = set()
    for _, _, name in order:
        if name in closed:
            continue
        if costs[name] > room:
            closed.add(name)  # a later, smaller module may still fit
            continue
        room -= costs[name]
        ranks[name] += 1
    return ranks
