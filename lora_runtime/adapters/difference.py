"""Differences and weights stored whole: Δ = the tensor itself, for weights, biases and norms, or what is to W₀.

`diff` and `diff_b` are the full differences of LyCORIS (arXiv:2309.14859, "native fine-tuning"), `w_norm` and `b_norm`
the same for the weight and bias of a norm; either of a pair comes alone too. `diff_m` is that of Wan's bare parameter
`modulation`.

`set_weight`, the scales of norms in the control LoRAs of Black Forest Labs, and the `base_layer` of PEFT's LoRA (a bias
that was trained beside the factors, or the table of a vocabulary with more words) are the new weight W′ itself. Other
programs put it in place of W₀ whatever the strength, so that the last file wins. Here Δ = W′ − W₀ as for every adapter:
strength 1 gives W′, 0 gives W₀, and it is in the one sum, so that the order of the files still cannot change a bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lora_runtime.adapters.base import Adapter, Algorithm, Dense, Group, misfit_of

__all__ = [
    "FULL",
    "NORM",
    "SET",
    "Difference",
    "NormDifference",
    "Replacement",
    "build_full",
    "build_norm",
    "build_set",
]


@dataclass(frozen=True, eq=False)
class Difference(Dense):
    """A difference as large as the parameter that it changes."""

    algorithm: ClassVar[str] = "full"

    values: Tensor  # the parameter's shape, give or take trailing ones or a flat kernel
    keys: tuple[str, ...]
    parameter: str = "weight"
    scale: float = 1.0

    def misfit(self, shape: torch.Size) -> str | None:
        """Return None where the difference has that shape."""
        return misfit_of(tuple(self.values.shape), shape, self.parameter)

    def change(self, weight: Tensor, cast: Callable[[Tensor], Tensor]) -> Tensor:
        """Return scale · values; a copy, since callers add to it."""
        return cast(self.values) * self.scale


class NormDifference(Difference):
    """The same for a norm."""

    algorithm: ClassVar[str] = "norm"


class Replacement(Difference):
    """What the parameter is to be at strength 1."""

    algorithm: ClassVar[str] = "set"
    base_dependent: ClassVar[bool] = True

    def change(self, weight: Tensor, cast: Callable[[Tensor], Tensor]) -> Tensor:
        """Return W′ − W₀."""
        return cast(self.values).reshape(weight.shape) - cast(weight)


def build_full(group: Group) -> list[Adapter]:
    """Return an adapter of the weight, of the bias, or of each."""
    return _build(group, Difference)


def build_norm(group: Group) -> list[Adapter]:
    """Return an adapter of the norm's weight, of its bias, or of each."""
    return _build(group, NormDifference)


def build_set(group: Group) -> list[Adapter]:
    """Return an adapter of the weight, of the bias, or of each."""
    return _build(group, Replacement)


def _build(group: Group, kind: type[Difference]) -> list[Adapter]:
    roles = [role for role in ("weight", "bias") if role in group.tensors]
    return [kind(group.tensors[role], (group.key_of[role],), role) for role in roles]


FULL = Algorithm(
    "full",
    {".diff": "diff/weight", ".diff_b": "diff/bias", ".diff_m": "modulation/weight"},
    build_full,
    shared=(),
    tails={".diff_m": ".modulation"},
)
NORM = Algorithm("norm", {".w_norm": "norm/weight", ".b_norm": "norm/bias"}, build_norm, shared=())
SET = Algorithm(
    "set",
    {
        ".set_weight": "set/weight",
        ".base_layer.weight": "base layer/weight",
        ".base_layer.bias": "base layer/bias",
        ".key_norm.scale": "norm/weight",
        ".query_norm.scale": "norm/weight",
    },
    build_set,
    shared=(),
    tails={".key_norm.scale": ".key_norm", ".query_norm.scale": ".query_norm"},
)
