"""Factors of a weight that one layout has in one piece and another in several: cut to rows, and put together again.

Both are exact, and undo each other bit for bit. Rows of a product are rows of its outer factor, so that q, k and v cut
from one share the inner factor; what shares it is put together as it was. What does not is put together as blocks:

    [U₁D₁; U₂D₂] = [U₁ 0; 0 U₂] · [D₁; D₂]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = ["Pair", "cut_apart", "put_together"]


@dataclass(frozen=True, eq=False)
class Pair:
    """Factors as files have them, up (out, r, 1…) and down (r, in, k…), and the scale of their product.

    `exact`: whether the tensors are those of the file.
    """

    up: Tensor
    down: Tensor
    scale: float
    exact: bool = True

    @property
    def rank(self) -> int:
        """The rows of the inner factor."""
        return int(self.down.shape[0])

    def turned(self) -> Pair:
        """Return it with the halves of its rows the other way round."""
        return replace(self, up=torch.cat(self.up.chunk(2)[::-1]))


def cut_apart(whole: Pair, rows: Sequence[int]) -> list[Pair | None]:
    """Return the factors of each of several weights, one below the other in the whole; None for one that is zero."""
    ups = torch.split(whole.up, list(rows))
    used = torch.stack([up.reshape(len(up), whole.rank).ne(0).any(0) for up in ups])  # (parts, rank)
    blocks = bool((used.sum(0) == 1).all())
    return [
        None
        if not bool(own.any())
        else replace(whole, up=up[:, own].contiguous(), down=whole.down[own].contiguous())
        if blocks
        else replace(whole, up=up.contiguous())
        for up, own in zip(ups, used, strict=True)
    ]


def put_together(parts: Sequence[Pair | None], rows: Sequence[int]) -> Pair:
    """Return the factors of one weight of several, one below the other, each of so many rows; None for a zero one."""
    there = [part for part in parts if part is not None]
    apart = len({part.scale for part in there}) > 1
    each = [None if part is None else _folded(part) if apart else part for part in parts]
    there = [part for part in each if part is not None]
    first = there[0]
    shared = all(part.down.shape == first.down.shape and torch.equal(part.down, first.down) for part in there)
    rank = first.rank if shared else sum(part.rank for part in there)
    dtype = first.up.dtype
    for part in there[1:]:
        dtype = torch.promote_types(dtype, part.up.dtype)
    up = torch.zeros(sum(rows), rank, *first.up.shape[2:], dtype=dtype)
    row = column = 0
    for own, count in zip(each, rows, strict=True):
        if own is not None:
            place = 0 if shared else column
            up[row : row + count, place : place + own.rank] = own.up
            column += own.rank
        row += count
    down = first.down if shared else torch.cat([part.down for part in there])
    return Pair(up, down, first.scale, all(part.exact for part in there))


def _folded(part: Pair) -> Pair:
    """Return it with its scale within the outer factor."""
    return replace(part, up=(part.up.double() * part.scale).to(part.up.dtype), scale=1.0, exact=part.scale == 1)
