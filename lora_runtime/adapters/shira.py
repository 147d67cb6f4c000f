"""SHiRA: a sparse delta, as the places and the changes of some elements. Bhardwaj et al. 2024, arXiv:2406.13175."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lora_runtime.adapters.base import Algorithm, Dense, Group
from lora_runtime.key_endings import ENDINGS

__all__ = ["ALGORITHM", "Sparse", "build"]


@dataclass(frozen=True, eq=False)
class Sparse(Dense):
    """Changes of some elements of a matrix."""

    algorithm: ClassVar[str] = "shira"

    indices: Tensor  # (2, n) integers: rows and columns
    values: Tensor  # (n,); those of the same place add up
    least: tuple[int, int]  # the size that the weight has at least, for all of the places to be in it
    keys: tuple[str, ...]

    def misfit(self, shape: torch.Size) -> str | None:
        """Return None for a matrix that has all of the places, and of which there are r·(out + in)."""
        count = self.values.numel()
        if len(shape) != 2 or any(extent < least for extent, least in zip(shape, self.least, strict=True)):
            return f"made for a matrix of at least {self.least}, the weight is {tuple(shape)}"
        if count % sum(shape):
            return f"its {count} places are no multiple of outputs and inputs, the weight is {tuple(shape)}"
        return None

    def change(self, weight: Tensor, cast: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the changes at their places, 0 elsewhere."""
        values = cast(self.values)
        row, column = self.indices.to(weight.device)
        return values.new_zeros(weight.numel()).index_add_(0, row * weight.shape[1] + column, values)


def build(group: Group) -> list[Sparse]:
    """Return the adapter of one module; ValueError says what is missing or contradictory."""
    values, indices = group.need("weight", "indices")
    if values.ndim != 1 or values.numel() == 0 or indices.shape != (2, values.numel()):
        raise ValueError(f"the places and the changes do not fit together: {group.shapes()}")
    indices = indices.long()  # PEFT writes floats on Windows
    least = (1, 1)
    if not indices.is_meta:
        if int(indices.min()) < 0:
            raise ValueError("a place with a negative number")
        least = (int(indices[0].max()) + 1, int(indices[1].max()) + 1)
    return [Sparse(indices, values, least, group.keys)]


ALGORITHM = Algorithm("shira", ENDINGS["shira"], build, shared=())
