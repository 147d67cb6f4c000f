"""LoKr: delta = scale · w1 ⊗ w2, a Kronecker product; each of the two whole, or itself a product of low rank.

LyCORIS: Yeh et al. 2023, arXiv:2309.14859.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lora_runtime.adapters.base import Algorithm, Cast, Dense, Group, misfit_of
from lora_runtime.adapters.forms import Form, Map
from lora_runtime.adapters.loha import tucker
from lora_runtime.key_endings import ENDINGS

__all__ = ["ALGORITHM", "Kronecker", "build", "kron_delta"]


def kron_delta(w1: Tensor, w2: Tensor) -> Tensor:
    """Return the LoKr delta, (a·c, b·d·k…), from factors (a, b) and (c, d·k…).

    A kernel may be flat: columns of the product run over b, then d, then the kernel, as a weight's own do.
    """
    return torch.kron(w1, w2.flatten(1))


def kron_map(values: Tensor, w1: Tensor, *w2: Tensor) -> Tensor:
    """Return (w1 ⊗ w2) @ each vector (…, b·d), without the product: B·X·Aᵀ from w1 (a, b) and w2 (c, d).

    `w2` is one matrix, or two factors of it, (c, r) and (r, d).
    """
    apart = values.reshape(*values.shape[:-1], w1.shape[1], -1)  # (…, b, d)
    for factor in reversed(w2):
        apart = apart @ factor.mT  # (…, b, c)
    return torch.matmul(w1, apart).flatten(-2)


def kron_convolved(values: Tensor, convolve: Callable[[Tensor, Tensor], Tensor], w1: Tensor, w2: Tensor) -> Tensor:
    """Return the convolution of (n, b·d, …) with w1 ⊗ w2, (n, a·c, …), from w1 (a, b) and a kernel w2 (c, d, k…)."""
    count, inputs = w1.shape[1], w2.shape[1]
    apart = convolve(values.reshape(-1, inputs, *values.shape[2:]), w2)  # (n·b, c, …)
    apart = apart.reshape(-1, count, *apart.shape[1:])  # (n, b, c, …)
    return torch.einsum("ab,nb...->na...", w1, apart).flatten(1, 2)


@dataclass(frozen=True, eq=False)
class _Half:
    """One of the two factors of the Kronecker product."""

    whole: Tensor | None  # (rows, columns, k…)
    a: Tensor | None  # (rows, r); with a core (r, rows)
    b: Tensor | None  # (r, columns·k…); with a core (r, columns)
    core: Tensor | None  # (r, r, k…)

    @property
    def shape(self) -> tuple[int, ...]:
        """Return (rows, columns, k…), the kernel flat where the file has it so."""
        if self.whole is not None:
            return tuple(self.whole.shape)
        assert self.a is not None
        assert self.b is not None
        if self.core is not None:
            return (int(self.a.shape[1]), int(self.b.shape[1]), *self.core.shape[2:])
        return (int(self.a.shape[0]), *self.b.shape[1:])

    def make(self, cast: Callable[[Tensor], Tensor]) -> Tensor:
        """Return (rows, columns·k…)."""
        if self.whole is not None:
            return cast(self.whole).flatten(1)
        assert self.a is not None
        assert self.b is not None
        if self.core is not None:
            return tucker(cast(self.core), cast(self.a), cast(self.b)).flatten(1)
        return cast(self.a) @ cast(self.b).flatten(1)


@dataclass(frozen=True, eq=False)
class Kronecker(Dense):
    """A Kronecker product of two matrices, the second of which may have a kernel."""

    algorithm: ClassVar[str] = "lokr"

    w1: _Half
    w2: _Half
    keys: tuple[str, ...]
    rank: int  # of the factors of a factor; 0 where both are whole
    alpha: float | None
    scale: float

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """The shape of the weight that it was trained on."""
        (rows, columns, *_), (rows_2, columns_2, *kernel) = self.w1.shape, self.w2.shape
        return (rows * rows_2, columns * columns_2, *kernel)

    def misfit(self, shape: torch.Size) -> str | None:
        """Return None where the product has that shape."""
        return misfit_of(self.weight_shape, shape, least=2)

    def change(self, weight: Tensor, cast: Callable[[Tensor], Tensor]) -> Tensor:
        """Return scale · w1 ⊗ w2."""
        return kron_delta(self.w1.make(cast) * self.scale, self.w2.make(cast))

    def forms(self, shape: torch.Size, cast: Cast, original: Callable[[], Tensor]) -> tuple[Form, ...] | None:
        """Return the map by both factors, one after the other."""
        w1 = self.w1.make(cast) * self.scale
        if len(shape) > 2:
            rows, columns = self.w2.shape[:2]
            kernel = self.w2.make(cast).reshape(rows, shape[1] // w1.shape[1], *shape[2:])
            return (Map("pixels", kron_convolved, (w1, kernel)),)
        (rows, columns), a, b = self.w2.shape[:2], self.w2.a, self.w2.b
        if a is not None and b is not None and self.w2.core is None and b.shape[0] * (rows + columns) < rows * columns:
            return (Map("input", kron_map, (w1, cast(a), cast(b).flatten(1))),)
        return (Map("input", kron_map, (w1, self.w2.make(cast))),)


@dataclass(frozen=True, eq=False)
class Unaligned(Kronecker):
    """A product whose second factor has a kernel of one dimension, as PEFT makes it: the first gets no axis for that.

    torch aligns the last axes, so (a, b) and (c, d, k) give (c, a·d, b·k), which PEFT reads in order as (a·c, b·d, k).
    """

    def change(self, weight: Tensor, cast: Callable[[Tensor], Tensor]) -> Tensor:
        """Return scale · w1 ⊗ w2."""
        assert self.w2.whole is not None
        return torch.kron(self.w1.make(cast) * self.scale, cast(self.w2.whole))

    def forms(self, shape: torch.Size, cast: Cast, original: Callable[[], Tensor]) -> None:
        """Return None: no two maps, one after the other, mix the axes in that way."""
        return


def build(group: Group) -> list[Kronecker]:
    """Return the adapter of one module; ValueError says what is missing or contradictory."""
    tensors = group.tensors
    w1 = _half(group, "w1", None)
    w2 = _half(group, "w2", tensors.get("t2"))
    if len(w1.shape) < 2 or len(w2.shape) < 2 or any(extent != 1 for extent in w1.shape[2:]):
        raise ValueError(f"the factors are neither matrices nor kernels: {group.shapes()}")
    unaligned = group.options.get("peft_type") == "LOKR" and w2.whole is not None and w2.whole.ndim == 3
    kind = Unaligned if unaligned else Kronecker
    # The second half's rank is the one that alpha was meant for; trainers give both the same.
    decomposed = next((half.b for half in (w2, w1) if half.b is not None), None)
    if decomposed is not None:
        rank = int(decomposed.shape[0])
        return [kind(w1, w2, group.keys, rank, group.alpha, group.scale_for(rank))]
    # Two whole factors have no rank to divide by: LyCORIS trains them at scale 1, and other trainers write an alpha
    # of about 1e10 to say the same.
    scale = 1.0 if group.scale is None else group.scale
    return [kind(w1, w2, group.keys, 0, group.alpha, scale)]


def _half(group: Group, name: str, core: Tensor | None) -> _Half:
    whole, a, b = (group.tensors.get(role) for role in (name, f"{name}_a", f"{name}_b"))
    if whole is not None:
        if a is not None or b is not None or core is not None:
            raise ValueError(f"{name} is there both whole and in factors: {group.shapes()}")
        return _Half(whole, None, None, None)
    if a is None and b is None:
        group.need(name)
    a, b = group.need(f"{name}_a", f"{name}_b")
    if core is None:
        fit = a.ndim == 2 and b.ndim >= 2 and a.shape[1] == b.shape[0]
    else:
        fit = a.ndim == b.ndim == 2 and core.ndim >= 2 and (a.shape[0], b.shape[0]) == core.shape[:2]
    if not fit:
        raise ValueError(f"the factors do not fit together: {group.shapes()}")
    return _Half(None, a, b, core)


ALGORITHM = Algorithm("lokr", ENDINGS["lokr"], build)
