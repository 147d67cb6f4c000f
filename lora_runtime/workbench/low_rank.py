"""The algebra of low rank: products of two factors are added, taken apart and cut without building ΔW.

    Σ sᵢ·Uᵢ·Dᵢ = [s₁U₁ … sₙUₙ]·[D₁; …; Dₙ]        ranks concatenate
    U = Q·R, Dᵀ = P·S, R·Sᵀ = A·σ·Bᵀ   ⇒   U·D = (Q·A)·σ·(P·B)ᵀ       the SVD of a core (rank, rank)

The best matrix of a lower rank is the SVD's first part (Eckart and Young 1936). Everything is float64 on the CPU, where
a product of 320 ranks for a weight (1280, 1280) takes 0.09 s on one core, and an SVD of the weight itself 1.0 s. With a
device factorisations are made there in float32, since most have no float64 or a slow one; results are float64 here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lora_runtime.workbench.differences import Difference

__all__ = ["Product", "Spectrum", "concatenated", "energy_of", "error_of", "significant", "spectrum_of", "taken_apart"]

_OVERSAMPLING = 16  # directions more than are wanted, so that the wanted ones are accurate
_POWER = 4  # products with the matrix and its transpose: where singular values fall slowly, fewer miss some
_WIDE = 4  # a sketch of more than a fourth of the lesser side takes as long as the SVD itself


@dataclass(frozen=True, eq=False)
class Product:
    """A matrix as two factors, float64: up (out, rank) and down (rank, columns)."""

    up: Tensor
    down: Tensor

    @property
    def rank(self) -> int:
        """The number of columns of the factor on the output side."""
        return int(self.up.shape[1])


@dataclass(frozen=True, eq=False)
class Basis:
    """Orthonormal columns Q (rows, r) as the reflections that make them.

    A cut needs Q times a few columns: applied to these, the reflections take a third of the time that making Q takes.
    """

    reflectors: Tensor  # (rows, r), as LAPACK's geqrf leaves them
    factors: Tensor  # (r,)

    @property
    def rows(self) -> int:
        """The length of a column."""
        return int(self.reflectors.shape[0])

    def times(self, core: Tensor) -> Tensor:
        """Return Q · core, (rows, k) for (r, k), in the core's dtype and on its device."""
        padded = self.reflectors.new_zeros(self.rows, core.shape[1])
        padded[: core.shape[0]] = core
        return torch.ormqr(self.reflectors, self.factors, padded).to(core)


def _triangle(columns: Tensor) -> tuple[Basis, Tensor]:
    """Return Q and R of a matrix (rows, n): columns = Q · R, R of (min(rows, n), n)."""
    found, factors = torch.geqrf(columns)
    rank = factors.numel()
    return Basis(found[:, :rank], factors), found[:rank].triu()


@dataclass(frozen=True, eq=False)
class Spectrum:
    """A singular value decomposition, float64: matrix = left · diag(values) · right, the greatest value first.

    `energy` is the squared Frobenius norm of the whole matrix; of a sketch the values are only the first.
    """

    left: Tensor  # (out, k); with `around` (r, k)
    values: Tensor  # (k,)
    right: Tensor  # (k, columns); with `around` (k, r)
    energy: float
    # Orthonormal columns (out, r) and (columns, r) around a core; multiplied only with what a cut needs of it.
    around: tuple[Basis, Basis] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the matrix."""
        if self.around is not None:
            return self.around[0].rows, self.around[1].rows
        return int(self.left.shape[0]), int(self.right.shape[1])

    def cut(self, rank: int) -> Product:
        """Return the best product of that rank; both factors take the square root of each value."""
        roots = self.values[:rank].sqrt()
        up, down = self.left[:, :rank] * roots, roots[:, None] * self.right[:rank]
        if self.around is None:
            return Product(up, down)
        return Product(self.around[0].times(up), self.around[1].times(down.mT).mT)

    def spaces(self, rank: int) -> tuple[Tensor, Tensor]:
        """Return orthonormal columns (out, rank) and (columns, rank) of the first `rank` terms."""
        left, right = self.left[:, :rank], self.right[:rank].mT
        return (left, right) if self.around is None else (self.around[0].times(left), self.around[1].times(right))

    def kept(self, rank: int) -> float:
        """Return the squared Frobenius norm of the first `rank` terms."""
        return float(self.values[:rank].square().sum())


def concatenated(terms: Sequence[tuple[float, Product]]) -> Product:
    """Return Σ factor · product: the ranks add up, and the factor goes to the output side."""
    return Product(
        torch.cat([product.up * factor for factor, product in terms], 1),
        torch.cat([product.down for _, product in terms], 0),
    )


def spectrum_of(product: Product, device: torch.device | None = None) -> Spectrum:
    """Return the SVD of a product, from the SVD of its core."""
    up, down = (each if device is None else each.to(device, torch.float32) for each in (product.up, product.down.mT))
    q_up, r_up = _triangle(up)
    q_down, r_down = _triangle(down)
    left, values, right = map(_home, torch.linalg.svd(r_up @ r_down.mT, full_matrices=False))
    return Spectrum(left, values, right, float(values.square().sum()), (q_up, q_down))


def _home(tensor: Tensor) -> Tensor:
    return tensor.to("cpu", torch.float64)


def taken_apart(matrix: Tensor | Difference, rank: int | None = None, *, exact: bool = False) -> Spectrum:
    """Return the SVD of a matrix (out, columns): all of it, or the first `rank` terms.

    Where so few are wanted that it pays, and not `exact`, they come from a sketch: the matrix times random directions,
    sharpened by power iterations (Halko, Martinsson and Tropp 2011, arXiv:0909.4061). What a sketch misses is measured,
    not estimated: the energy that its terms have is exact, and so is that of the whole.
    """
    matrix = Difference(matrix) if isinstance(matrix, Tensor) else matrix
    energy = matrix.energy()
    lesser = min(matrix.shape)
    if exact or rank is None or (rank + _OVERSAMPLING) * _WIDE > lesser:
        left, values, right = map(_home, torch.linalg.svd(matrix.whole(), full_matrices=False))
        return Spectrum(left, values, right, energy)
    generator = torch.Generator().manual_seed(0)  # the same file every time
    seeds = torch.randn(matrix.shape[1], rank + _OVERSAMPLING, generator=generator, dtype=torch.float64)
    if matrix.device is not None:
        seeds = seeds.to(matrix.device, torch.float32)
    basis, _ = torch.linalg.qr(matrix.times(seeds))
    for _ in range(_POWER):
        back, _ = torch.linalg.qr(matrix.turned_times(basis))
        basis, _ = torch.linalg.qr(matrix.times(back))
    right, values, left = map(_home, torch.linalg.svd(matrix.turned_times(basis), full_matrices=False))
    return Spectrum(_home(basis) @ left[:rank].mT, values[:rank], right[:, :rank].mT, energy)


def significant(spectrum: Spectrum) -> int:
    """Return how many singular values are more than the rounding of float64: the rank, as numerical analysis has it."""
    if spectrum.values.numel() == 0:
        return 0
    floor = float(spectrum.values[0]) * max(spectrum.shape) * torch.finfo(torch.float64).eps
    return int((spectrum.values > floor).sum())


def energy_of(product: Product) -> float:
    """Return the squared Frobenius norm of a product, from Gram matrices of the rank's size."""
    gram = (product.up.mT @ product.up) * (product.down @ product.down.mT)
    return max(0.0, float(gram.sum()))


def error_of(product: Product, rounded: Product) -> float:
    """Return the squared Frobenius norm of rounded − product, of factors of the same shapes.

    As (U′ − U)·D′ + U·(D′ − D): no large numbers cancel, so that the error of an error stays small too.
    """
    first = Product(rounded.up - product.up, rounded.down)
    second = Product(product.up, rounded.down - product.down)
    return energy_of(concatenated([(1.0, first), (1.0, second)]))
