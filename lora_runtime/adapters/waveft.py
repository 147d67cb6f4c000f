"""WaveFT: delta = scaling · the inverse wavelet transform of a few learnt coefficients, at places drawn from a seed.

Bilican et al. 2025, arXiv:2505.12532. One step of the transform: the matrix is four quarters of coefficients, with a
margin as wide as the filter needs. Filters are Daubechies' ("Ten Lectures on Wavelets", 1992, chapter 6), computed
here; the other families that PEFT has are tables without such a formula, and are refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lora_runtime.adapters.base import Algorithm, Group
from lora_runtime.adapters.fourierft import Frequencies, settings
from lora_runtime.key_endings import ENDINGS

__all__ = ["ALGORITHM", "Wavelets", "build", "daubechies"]

_HIGHEST = 10  # of those that PEFT has


def daubechies(moments: int) -> Tensor:
    """Return the low-pass filter of synthesis with that many vanishing moments, (2·moments,) in float64.

    The roots y of Σ C(N−1+k, k)·yᵏ, k < N, give z + 1/z = 2 − 4y; the filter is that of (1 + z)ᴺ and of the roots
    inside of the unit circle, of length 1.
    """
    binomials = torch.tensor([math.comb(moments - 1 + k, k) for k in range(moments)], dtype=torch.float64)
    degree = moments - 1
    companion = torch.diag(torch.ones(max(degree - 1, 0), dtype=torch.float64), -1)
    roots = torch.zeros(0, dtype=torch.complex128)
    if degree:
        companion[:, -1] = -binomials[:-1] / binomials[-1]
        roots = torch.linalg.eigvals(companion)
    middle = 1 - 2 * roots
    around = torch.sqrt(middle * middle - 1)
    inner = torch.where((middle + around).abs() < 1, middle + around, middle - around)
    polynomial = torch.ones(1, dtype=torch.complex128)
    for root in (*inner, *[torch.tensor(-1.0, dtype=torch.complex128)] * moments):
        polynomial = F.pad(polynomial, (0, 1)) - root * F.pad(polynomial, (1, 0))
    low: Tensor = polynomial.real
    norm: Tensor = torch.linalg.vector_norm(low)
    return low / norm


def _synthesis(matrix: Tensor, low: Tensor) -> Tensor:
    """Return a signal for each column of (low-pass coefficients, then high-pass), (2n − taps + 2, columns)."""
    taps = low.shape[0]
    high = low.flip(0)
    high[1::2].neg_()
    count = matrix.shape[0] // 2
    signal = matrix.new_zeros(2 * (count - 1) + taps, matrix.shape[1])
    for tap in range(taps):
        signal[tap : tap + 2 * count - 1 : 2] += low[tap] * matrix[:count] + high[tap] * matrix[count:]
    margin = taps - 2
    return signal[margin : signal.shape[0] - margin]


@dataclass(frozen=True, eq=False)
class Wavelets(Frequencies):
    """A few wavelets of a change of a matrix."""

    algorithm: ClassVar[str] = "waveft"

    low: Tensor | None = None  # the low-pass filter; None where the learnt numbers are the change itself

    def change(self, weight: Tensor, cast: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the change that the wavelets make."""
        spread = self.spread(weight.shape, cast)
        if self.low is None:
            return spread * self.scale
        low = cast(self.low)
        wide = [extent + low.shape[0] - 2 for extent in spread.shape]
        wide = [extent + extent % 2 for extent in wide]
        before = [(extent - own) // 2 for extent, own in zip(wide, spread.shape, strict=True)]
        after = [extent - own - first for extent, own, first in zip(wide, spread.shape, before, strict=True)]
        coefficients = F.pad(spread, (before[1], after[1], before[0], after[0]))
        # The quarter at the top right is high along the rows' axis: PEFT names the two mixed quarters so.
        (top, top_right), (left, rest) = (half.chunk(2, 1) for half in coefficients.chunk(2, 0))
        quarters = torch.cat([torch.cat([top, left], 1), torch.cat([top_right, rest], 1)], 0)
        signal = _synthesis(_synthesis(quarters, low).t(), low).t()
        row, column = ((made - own) // 2 for made, own in zip(signal.shape, spread.shape, strict=True))
        return signal[row : row + spread.shape[0], column : column + spread.shape[1]] * self.scale


def build(group: Group) -> list[Wavelets]:
    """Return the adapter of one module; ValueError says what is missing or contradictory."""
    spectrum, seed, scale = settings(group)
    low = None
    if group.options["use_idwt"]:
        family = group.options["wavelet_family"]
        moments = int(family[2:]) if family in {f"db{number}" for number in range(1, _HIGHEST + 1)} else 0
        if not moments:
            raise ValueError(f"the wavelet {family!r:.20} is none of db1 to db{_HIGHEST}, which can be computed")
        low = daubechies(moments)
    return [Wavelets(spectrum, seed, group.keys, scale, low=low)]


ALGORITHM = Algorithm("waveft", ENDINGS["waveft"], build, shared=())
