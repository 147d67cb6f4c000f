"""LoRA of experts: Δ[e] = alpha/r · B[e]·A[e] for a parameter that has the weights of all experts, (experts, out, in).

PEFT's `target_parameters` (2106.09685 for the method). The factors are those of one wide layer: A (experts·r, in) with
the experts first, B (out, r·experts) with the experts last. How many experts there are, and so r, only the parameter
tells; one of two dimensions is a single expert.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lora_runtime.adapters.base import Dense, Group

__all__ = ["Experts", "experts"]


@dataclass(frozen=True, eq=False)
class Experts(Dense):
    """A product of two factors for each expert."""

    algorithm: ClassVar[str] = "lora"

    up: Tensor  # B (out, r·experts)
    down: Tensor  # A (experts·r, in)
    keys: tuple[str, ...]
    scale_for: Callable[[int], float]  # rank → scale
    alpha: float | None

    def misfit(self, shape: torch.Size) -> str | None:
        """Return None where the outputs and inputs are those of the factors, and the ranks can be shared out."""
        made_for = (int(self.up.shape[0]), int(self.down.shape[1]))
        count, ranks = shape[0] if len(shape) == 3 else 1, int(self.down.shape[0])
        if len(shape) in (2, 3) and shape[-2:] == made_for and count and ranks % count == 0:
            return None
        return f"made for experts of {made_for} with {ranks} ranks together, the weight is {tuple(shape)}"

    def change(self, weight: Tensor, cast: Callable[[Tensor], Tensor]) -> Tensor:
        """Return alpha/r · B·A, expert by expert."""
        count = weight.shape[0] if weight.ndim == 3 else 1
        down, up = cast(self.down), cast(self.up)
        rank = down.shape[0] // count
        down = down.reshape(count, rank, down.shape[1])
        up = up.reshape(up.shape[0], rank, count).permute(2, 0, 1)
        return torch.matmul(up, down) * self.scale_for(rank)


def experts(group: Group, up: Tensor, down: Tensor, keys: tuple[str, ...]) -> Experts:
    """Return the adapter of one parameter; ValueError says what is contradictory."""
    if up.ndim != 2 or down.ndim != 2 or up.shape[1] != down.shape[0]:
        raise ValueError(f"the factors do not fit together: {group.shapes()}")
    return Experts(up, down, keys, group.scale_for, group.alpha)
