"""HiRA: Δ(W₀) = W₀ ∘ (B·A), a product of low rank that multiplies each element. Huang et al., ICLR 2025."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lora_runtime.adapters.base import Algorithm, Dense, Group, misfit_of
from lora_runtime.key_endings import ENDINGS

__all__ = ["ALGORITHM", "Hadamard", "build"]


@dataclass(frozen=True, eq=False)
class Hadamard(Dense):
    """A factor for each element of the weight, from two factors of low rank."""

    algorithm: ClassVar[str] = "hira"
    base_dependent: ClassVar[bool] = True

    up: Tensor  # (out, rank, 1…)
    down: Tensor  # (rank, in, k…)
    keys: tuple[str, ...]
    rank: int

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """The shape of the weight that it was trained on."""
        return (int(self.up.shape[0]), *self.down.shape[1:])

    def misfit(self, shape: torch.Size) -> str | None:
        """Return None where the product has that shape."""
        return misfit_of(self.weight_shape, shape, least=2)

    def change(self, weight: Tensor, cast: Callable[[Tensor], Tensor]) -> Tensor:
        """Return W₀ ∘ (B·A)."""
        product = cast(self.up).flatten(1) @ cast(self.down).flatten(1)
        return cast(weight) * product.reshape(weight.shape)


def build(group: Group) -> list[Hadamard]:
    """Return the adapter of one module; ValueError says what is missing or contradictory."""
    if "embedding_A" in group.tensors:  # of a table of (numbers, extent), so the product is transposed
        down, up = (factor.mT for factor in group.need("embedding_B", "embedding_A"))
    else:
        up, down = group.need("B", "A")
    if up.ndim < 2 or down.ndim < 2 or up.shape[1] != down.shape[0] or math.prod(up.shape[2:]) != 1:
        raise ValueError(f"the factors do not fit together: {group.shapes()}")
    return [Hadamard(up, down, group.keys, int(down.shape[0]))]


ALGORITHM = Algorithm("hira", ENDINGS["hira"], build, shared=())
