"""ABBA: delta = s · (up1 @ down1) ⊙ (up2 @ down2), a Hadamard product of two LoRAs; s = alpha² / √(rank1 · rank2).

ABBA: Singhal et al. 2025, arXiv:2505.14238.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lora_runtime.adapters.base import Algorithm, Cast, Dense, Group, misfit_of
from lora_runtime.adapters.forms import Factors, Form, khatri_rao, pays
from lora_runtime.adapters.loha import hadamard_delta
from lora_runtime.key_endings import ENDINGS

__all__ = ["ALGORITHM", "Abba", "build"]

_ROLES = ("up1", "down1", "up2", "down2")


@dataclass(frozen=True, eq=False)
class Abba(Dense):
    """Two LoRAs, multiplied element by element."""

    algorithm: ClassVar[str] = "abba"

    up1: Tensor  # (out, r1, 1…)
    down1: Tensor  # (r1, in, k…)
    up2: Tensor  # (out, r2, 1…)
    down2: Tensor  # (r2, in, k…)
    keys: tuple[str, ...]
    alpha: float | None
    scale: float

    @property
    def rank(self) -> int:  # type: ignore[override]
        """Return the rank of the first LoRA; that of the delta may be the product of both."""
        return int(self.down1.shape[0])

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """The shape of the weight that it was trained on."""
        return (int(self.up1.shape[0]), *self.down1.shape[1:])

    def misfit(self, shape: torch.Size) -> str | None:
        """Return None where the factors give a weight of that shape."""
        return misfit_of(self.weight_shape, shape, least=2)

    def change(self, weight: Tensor, cast: Callable[[Tensor], Tensor]) -> Tensor:
        """Return scale · the Hadamard product."""
        up1, down1, up2, down2 = (cast(t).flatten(1) for t in (self.up1, self.down1, self.up2, self.down2))
        return hadamard_delta(up1 * self.scale, down1, up2, down2)

    def forms(self, shape: torch.Size, cast: Cast, original: Callable[[], Tensor]) -> tuple[Form, ...] | None:
        """Return two factors of rank r₁·r₂, or None where that is no less than the weight itself."""
        if not pays(int(self.down1.shape[0] * self.down2.shape[0]), shape):
            return None
        up1, down1, up2, down2 = (cast(t).flatten(1) for t in (self.up1, self.down1, self.up2, self.down2))
        return (Factors(*khatri_rao((up1, down1), (up2, down2)), self.scale),)


def build(group: Group) -> list[Abba]:
    """Return the adapter of one module; ValueError says what is missing or contradictory."""
    up1, down1, up2, down2 = group.need(*_ROLES)
    for up, down in ((up1, down1), (up2, down2)):
        if up.ndim < 2 or down.ndim < 2 or math.prod(up.shape[2:]) != 1 or up.shape[1] != down.shape[0]:
            raise ValueError(f"the factors do not fit together: {group.shapes()}")
    if (up1.shape[0], *down1.shape[1:]) != (up2.shape[0], *down2.shape[1:]):
        raise ValueError(f"the two products differ in shape: {group.shapes()}")
    return [Abba(up1, down1, up2, down2, group.keys, group.alpha, _scale(group, down1.shape[0] * down2.shape[0]))]


def _scale(group: Group, ranks: int) -> float:
    """Return alpha² / √(rank1 · rank2), 1 without an alpha: both LoRAs have the same alpha and the rsLoRA scale."""
    if group.scale is not None:
        return group.scale
    if group.alpha is None:
        return 1.0
    return group.alpha**2 / math.sqrt(ranks) if ranks else 0.0


ALGORITHM = Algorithm("abba", ENDINGS["abba"], build)
