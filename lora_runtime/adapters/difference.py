"""Differences stored whole: Δ = the tensor itself, for weights, biases and norms.

`diff` and `diff_b` are the full differences of LyCORIS (arXiv:2309.14859, "native fine-tuning"), `w_norm` and `b_norm`
the same for the weight and bias of a norm; either of a pair comes alone too. `diff_m` is that of Wan's bare parameter
`modulation`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lora_runtime.adapters.base import Adapter, Algorithm, Dense, Group, misfit_of
from lora_runtime.key_endings import ENDINGS

__all__ = [
    "FULL",
    "NORM",
    "Difference",
    "NormDifference",
    "build_full",
    "build_norm",
]


@dataclass(frozen=True, eq=False)
class Difference(Dense):
    """A difference as large as the parameter that it changes."""

    algorithm: ClassVar[str] = "full"

    values: Tensor  # the parameter's shape, give or take trailing ones or a flat kernel
    keys: tuple[str, ...]
    parameter: str = "weight"
    scale: float = 1.0

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """The shape of the weight that it was trained on."""
        return tuple(self.values.shape)

    def misfit(self, shape: torch.Size) -> str | None:
        """Return None where the difference has that shape."""
        return misfit_of(tuple(self.values.shape), shape, self.parameter)

    def change(self, weight: Tensor, cast: Callable[[Tensor], Tensor]) -> Tensor:
        """Return scale · values; a copy, since callers add to it."""
        return cast(self.values) * self.scale


class NormDifference(Difference):
    """The same for a norm."""

    algorithm: ClassVar[str] = "norm"


def build_full(group: Group) -> list[Adapter]:
    """Return an adapter of the weight, of the bias, or of each."""
    return _build(group, Difference)


def build_norm(group: Group) -> list[Adapter]:
    """Return an adapter of the norm's weight, of its bias, or of each."""
    return _build(group, NormDifference)


def _build(group: Group, kind: type[Difference]) -> list[Adapter]:
    roles = [role for role in ("weight", "bias") if role in group.tensors]
    return [kind(group.tensors[role], (group.key_of[role],), role) for role in roles]


FULL = Algorithm(
    "full",
    ENDINGS["full"],
    build_full,
    shared=(),
    tails={".diff_m": ".modulation"},
)
NORM = Algorithm("norm", ENDINGS["norm"], build_norm, shared=())
