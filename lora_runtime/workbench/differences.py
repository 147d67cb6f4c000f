"""The difference of two matrices as they are stored: float64 a few rows at a time, and never as a whole.

A difference of half-precision weights in float64 takes four times what one of them does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Difference"]

_ELEMENTS = 1 << 20  # of a piece: 8 MB in float64


@dataclass(frozen=True, eq=False)
class Difference:
    """tuned − base, both (out, columns) of any floating dtype; base None for a matrix by itself.

    `device`: where products are computed, in float32; None for the CPU, in float64.
    """

    tuned: Tensor
    base: Tensor | None = None
    device: torch.device | None = None

    @property
    def shape(self) -> torch.Size:
        """(out, columns)."""
        return self.tuned.shape

    def pieces(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield its rows from the first to the last, several at a time, float64 or on the device float32.

        Each is there until the next one, which has its memory: new memory for each would not be given back.
        """
        count = max(1, _ELEMENTS // max(1, self.shape[1]))
        room = torch.empty(min(count, self.shape[0]), self.shape[1], dtype=torch.float64)
        for start in range(0, self.shape[0], count):
            rows = slice(start, min(start + count, self.shape[0]))
            piece = room[: rows.stop - start].copy_(self.tuned[rows])
            if self.base is not None:
                piece.sub_(self.base[rows])
            yield rows, piece if self.device is None else piece.to(self.device, torch.float32, copy=True)

    def any(self) -> bool:
        """Return whether anything differs."""
        return any(bool(piece.any()) for _, piece in self.pieces())

    def energy(self) -> float:
        """Return the squared Frobenius norm."""
        return sum(float(torch.dot(piece.flatten(), piece.flatten())) for _, piece in self.pieces())

    def times(self, right: Tensor) -> Tensor:
        """Return the product with (columns, k), as (out, k)."""
        found = right.new_empty(self.shape[0], right.shape[1])
        for rows, piece in self.pieces():
            torch.mm(piece, right, out=found[rows])
        return found

    def turned_times(self, left: Tensor) -> Tensor:
        """Return the product of its transpose with (out, k), as (columns, k)."""
        total = left.new_zeros(self.shape[1], left.shape[1])
        for rows, piece in self.pieces():
            total.addmm_(piece.mT, left[rows])
        return total

    def whole(self) -> Tensor:
        """Return all of it."""
        found = torch.empty(self.shape, dtype=torch.float64 if self.device is None else torch.float32)
        found = found.to(self.device or "cpu")
        for rows, piece in self.pieces():
            found[rows] = piece
        return found
