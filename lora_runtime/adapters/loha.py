"""LoHa: delta = alpha/rank · (w1a @ w1b) ⊙ (w2a @ w2b), the Hadamard product of two products.

FedPara: Hyeon-Woo et al. 2021, arXiv:2108.06098. For diffusion models, with a Tucker core for kernels: LyCORIS,
arXiv:2309.14859.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lora_runtime.adapters.base import Algorithm, Cast, Dense, Group, misfit_of
from lora_runtime.adapters.forms import Factors, Form, khatri_rao, pays
from lora_runtime.key_endings import ENDINGS

__all__ = ["ALGORITHM", "Hadamard", "build", "hadamard_delta", "tucker"]


# Up to this rank one product, summed in blocks that stay in the cache, took a merge into weights of 640² to 3072² 0.1
# to 0.9 of the time of two products of the weight's size (one thread; 1.2 in one case, 640² in bfloat16 at 36). At 64
# it was 0.3 to 2.0, at 256 up to 6.
_SMALL = 36


def hadamard_delta(w1a: Tensor, w1b: Tensor, w2a: Tensor, w2b: Tensor) -> Tensor:
    """Return (w1a @ w1b) ⊙ (w2a @ w2b), (out, in·k…), from two pairs (out, r) and (r, in·k…)."""
    return (w1a @ w1b).mul_(w2a @ w2b)


def tucker(core: Tensor, wa: Tensor, wb: Tensor) -> Tensor:
    """Return Σ core[i, j, …] · wa[i, out] · wb[j, in], (out, in, k…), from (r, r, k…), (r, out) and (r, in)."""
    return torch.einsum("ij...,io,jp->op...", core, wa, wb)


@dataclass(frozen=True, eq=False)
class Hadamard(Dense):
    """Two products, multiplied element by element."""

    algorithm: ClassVar[str] = "loha"

    # Without a core (out, r) and (r, in·k…) each; with cores (r, out) and (r, in) each: `a` is then turned.
    w1: tuple[Tensor, Tensor]
    w2: tuple[Tensor, Tensor]
    cores: tuple[Tensor, Tensor] | None  # (r, r, k…) each
    keys: tuple[str, ...]
    alpha: float | None
    scale: float

    @property
    def rank(self) -> int:  # type: ignore[override]
        """Return the rank of the first product; that of the delta may be its square."""
        return int(self.w1[1].shape[0])

    @property
    def made_for(self) -> tuple[int, ...]:
        """Return the shape of the weight that it was trained on, as far as its factors tell."""
        a, b = self.w1
        if self.cores is None:
            return (int(a.shape[0]), *b.shape[1:])
        return (int(a.shape[1]), int(b.shape[1]), *self.cores[0].shape[2:])

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """The shape of the weight that it was trained on."""
        return self.made_for

    def misfit(self, shape: torch.Size) -> str | None:
        """Return None where the factors give a weight of that shape."""
        return misfit_of(self.made_for, shape, least=2)

    def change(self, weight: Tensor, cast: Callable[[Tensor], Tensor]) -> Tensor:
        """Return scale · the Hadamard product."""
        (w1a, w1b), (w2a, w2b) = ((cast(a), cast(b)) for a, b in (self.w1, self.w2))
        if self.cores is None:
            return hadamard_delta(w1a * self.scale, w1b.flatten(1), w2a, w2b.flatten(1))
        t1, t2 = (cast(core) for core in self.cores)
        return tucker(t1, w1a * self.scale, w1b) * tucker(t2, w2a, w2b)

    def products(self, cast: Cast) -> Factors | None:
        """Return two factors of rank r₁·r₂, where that is small."""
        rank = self.w1[1].shape[0] * self.w2[1].shape[0]
        if self.cores is not None or rank > _SMALL:
            return None
        first, second = ((cast(a), cast(b)) for a, b in (self.w1, self.w2))
        return Factors(*khatri_rao(first, second), self.scale)

    def forms(self, shape: torch.Size, cast: Cast, original: Callable[[], Tensor]) -> tuple[Form, ...] | None:
        """Return two factors of rank r₁·r₂, or None where that is no less than the weight itself."""
        (w1a, w1b), (w2a, w2b) = self.w1, self.w2
        if not pays(int(w1b.shape[0] * w2b.shape[0]), shape):
            return None
        if self.cores is None:
            first, second = (cast(w1a), cast(w1b)), (cast(w2a), cast(w2b))
        else:
            t1, t2 = (cast(core) for core in self.cores)
            first = cast(w1a).t(), torch.einsum("ij...,jp->ip...", t1, cast(w1b))
            second = cast(w2a).t(), torch.einsum("ij...,jp->ip...", t2, cast(w2b))
        return (Factors(*khatri_rao(first, second), self.scale),)


def build(group: Group) -> list[Hadamard]:
    """Return the adapter of one module; ValueError says what is missing or contradictory."""
    w1a, w1b, w2a, w2b = group.need("w1_a", "w1_b", "w2_a", "w2_b")
    cores = None
    if "t1" in group.tensors or "t2" in group.tensors:
        t1, t2 = group.need("t1", "t2")
        cores = t1, t2
    for a, b, core in ((w1a, w1b, cores and cores[0]), (w2a, w2b, cores and cores[1])):
        if not _fit_together(a, b, core):
            raise ValueError(f"the factors do not fit together: {group.shapes()}")
    rank = int(w1b.shape[0])
    made = Hadamard((w1a, w1b), (w2a, w2b), cores, group.keys, group.alpha, group.scale_for(rank))
    other = Hadamard((w2a, w2b), (w1a, w1b), cores and cores[::-1], (), None, 1.0)
    if made.made_for != other.made_for:
        raise ValueError(f"the two products differ in shape: {group.shapes()}")
    return [made]


def _fit_together(a: Tensor, b: Tensor, core: Tensor | None) -> bool:
    if core is None:
        return a.ndim == 2 and b.ndim >= 2 and a.shape[1] == b.shape[0]
    return a.ndim == b.ndim == 2 and core.ndim >= 2 and (a.shape[0], b.shape[0]) == core.shape[:2]


ALGORITHM = Algorithm("loha", ENDINGS["loha"], build)
