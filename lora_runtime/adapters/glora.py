"""GLoRA: Δ(W₀) = alpha/rank · (W₀·a1·a2 + b1·b2), a LoRA of the weight beside one that acts on the weight itself.

Chavan et al. 2023, arXiv:2306.07967, in the form that LyCORIS (arXiv:2309.14859) trains.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lora_runtime.adapters.base import Algorithm, Cast, Dense, Group, misfit_of
from lora_runtime.adapters.forms import Factors, Form, Map, low_rank
from lora_runtime.key_endings import ENDINGS

__all__ = ["ALGORITHM", "Glora", "build", "glora_delta"]


def glora_delta(weight: Tensor, a1: Tensor, a2: Tensor, added: Tensor) -> Tensor:
    """Return W₀·a1·a2 + added, in the shape of W₀, (out, in, k…), from a1 (in, r), a2 (r, in) and `added`.

    Of a kernel, every place is multiplied by itself.
    """
    return torch.einsum("oi...,ir,rj->oj...", weight, a1, a2) + added.reshape(weight.shape)


@dataclass(frozen=True, eq=False)
class Glora(Dense):
    """Two products: one that W₀ is multiplied by, and one that is added."""

    algorithm: ClassVar[str] = "glora"
    base_dependent: ClassVar[bool] = True

    a1: Tensor  # (in, r, 1…)
    a2: Tensor  # (r, in, 1…)
    b1: Tensor  # (out, r, 1…)
    b2: Tensor  # (r, in, k…); with a core (r, in, 1…)
    bm: Tensor | None  # (r, r, k…)
    keys: tuple[str, ...]
    alpha: float | None
    scale: float

    @property
    def rank(self) -> int:  # type: ignore[override]
        """Return the rank that all factors have."""
        return int(self.a1.shape[1])

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """The shape of the weight that it was trained on."""
        kernel = self.b2.shape[2:] if self.bm is None else self.bm.shape[2:]
        return (int(self.b1.shape[0]), int(self.b2.shape[1]), *kernel)

    def misfit(self, shape: torch.Size) -> str | None:
        """Return None where the factors give a weight of that shape."""
        made_for = self.weight_shape
        # The product with W₀ needs the inputs apart from the kernel.
        if len(shape) >= 2 and shape[1] != made_for[1]:
            return f"made for {made_for}, the weight is {tuple(shape)}"
        return misfit_of(made_for, shape, least=2)

    def change(self, weight: Tensor, cast: Callable[[Tensor], Tensor]) -> Tensor:
        """Return scale · (W₀·a1·a2 + b1·b2)."""
        b1, b2 = cast(self.b1).flatten(1), cast(self.b2)
        if self.bm is None:
            added = b1 @ b2.flatten(1)
        else:
            added = torch.einsum("mn...,om,ni->oi...", cast(self.bm), b1, b2.flatten(1))
        return glora_delta(cast(weight), cast(self.a1).flatten(1), cast(self.a2).flatten(1), added) * self.scale

    def forms(self, shape: torch.Size, cast: Cast, original: Callable[[], Tensor]) -> tuple[Form, ...]:
        """Return a change of the input for W₀·a1·a2, and two factors for b1·b2."""
        down = cast(self.b2).flatten(1)
        if self.bm is not None:
            down = torch.einsum("mn...,ni->mi...", cast(self.bm), down).flatten(1)
        before = Map("before", low_rank, (cast(self.a1).flatten(1) * self.scale, cast(self.a2).flatten(1)))
        return before, Factors(cast(self.b1).flatten(1), down, self.scale)


def build(group: Group) -> list[Glora]:
    """Return the adapter of one module; ValueError says what is missing or contradictory."""
    a1, a2, b1, b2 = group.need("a1", "a2", "b1", "b2")
    bm = group.tensors.get("bm")
    # LyCORIS before 3.0 multiplied the other way round, W₀·a2·a1 + b2·b1. Where both readings fit, as they can for a
    # square weight, a rank below the width decides.
    readings = [(a1, a2, b1, b2), (a2, a1, b2, b1)]
    fitting = [reading for reading in readings if _fit_together(*reading, bm)]
    if not fitting:
        raise ValueError(f"the factors do not fit together: {group.shapes()}")
    a1, a2, b1, b2 = min(fitting, key=lambda reading: reading[0].shape[1])
    rank = int(a1.shape[1])
    return [Glora(a1, a2, b1, b2, bm, group.keys, group.alpha, group.scale_for(rank))]


def _fit_together(a1: Tensor, a2: Tensor, b1: Tensor, b2: Tensor, bm: Tensor | None) -> bool:
    """Return whether (in, r), (r, in), (out, r), (r, in, k…) is a reading of these tensors."""
    tensors = (a1, a2, b1, b2) if bm is None else (a1, a2, b1, b2, bm)
    if any(tensor.ndim < 2 for tensor in tensors):
        return False
    points = (a1, a2, b1) if bm is None else (a1, a2, b1, b2)
    if any(extent != 1 for tensor in points for extent in tensor.shape[2:]):
        return False
    (inputs, rank), ranks = a1.shape[:2], {a2.shape[0], b1.shape[1], b2.shape[0], *(() if bm is None else bm.shape[:2])}
    return ranks == {rank} and a2.shape[1] == b2.shape[1] == inputs


ALGORITHM = Algorithm("glora", ENDINGS["glora"], build)
