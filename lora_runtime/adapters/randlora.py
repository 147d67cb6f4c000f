"""RandLoRA: delta = alpha/r · a sum of full rank of random bases, which all modules of the file share.

Albert et al. 2025, arXiv:2502.00987. A (r, 1, small) and B (large, bases, r) are random and frozen; a module learns Λ
(r, bases) and Γ (bases, small), with which A is scaled. "small" and "large" are the lesser and the greater of a
module's inputs and outputs, so A lies on the side of the inputs of some modules and of the outputs of others.

The product pairs rank by rank A flattened as (r, bases) with B flattened as (bases, r), as PEFT trains it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lora_runtime.adapters.base import Algorithm, Dense, Group
from lora_runtime.key_endings import ENDINGS, OF_FILE

__all__ = ["ALGORITHM", "RandomBases", "build"]


@dataclass(frozen=True, eq=False)
class RandomBases(Dense):
    """Random bases of the whole file, scaled for one module."""

    algorithm: ClassVar[str] = "randlora"

    small: Tensor  # A (r, 1, at least the lesser side)
    large: Tensor  # B (at least the greater side, at least bases, r)
    by_basis: Tensor  # Λ (r, bases)
    by_place: Tensor  # Γ (bases, the lesser side)
    keys: tuple[str, ...]
    alpha: float
    scale: float

    @property
    def rank(self) -> int:  # type: ignore[override]
        """Return the rank of one basis."""
        return int(self.by_basis.shape[0])

    def misfit(self, shape: torch.Size) -> str | None:
        """Return None where the lesser side is that of the module, and the greater not more than the file's."""
        least, most = int(self.by_place.shape[1]), int(self.large.shape[0])
        if len(shape) == 2 and min(shape) == least and max(shape) <= most:
            return None
        return f"made for a lesser side of {least} and a greater of at most {most}, the weight is {tuple(shape)}"

    def change(self, weight: Tensor, cast: Callable[[Tensor], Tensor]) -> Tensor:
        """Return alpha/r · (B · scaled A), turned where A is on the side of the outputs."""
        outputs, inputs = weight.shape
        by_basis = cast(self.by_basis)
        bases = by_basis.shape[1]
        small = cast(self.small[:, :, : min(outputs, inputs)])
        scaled = (by_basis[:, :, None] * small * cast(self.by_place)).flatten(0, 1)  # (r·bases, lesser)
        large = cast(self.large[: max(outputs, inputs), :bases]).flatten(1)  # (greater, bases·r)
        delta = large @ scaled * self.scale
        return delta if inputs <= outputs else delta.t()


def build(group: Group) -> list[RandomBases]:
    """Return the adapter of one module; ValueError says what is missing or contradictory."""
    by_basis, by_place = group.need("lambda", "gamma")
    small, large = group.of_file("A", "B")
    alpha = group.options.get("randlora_alpha")
    if alpha is None:
        raise ValueError("only the adapter_config.json, which is not beside it, tells its scale")
    if (by_basis.ndim, by_place.ndim, small.ndim, large.ndim) != (2, 2, 3, 3) or by_basis.numel() == 0:
        raise ValueError(f"the bases and their scales do not fit together: {group.shapes()}")
    rank, bases = by_basis.shape
    if not (
        small.shape[:2] == (rank, 1)
        and large.shape[2] == rank
        and large.shape[1] >= bases == by_place.shape[0]
        and by_place.shape[1] <= small.shape[2]
    ):
        raise ValueError(f"the bases and their scales do not fit together: {group.shapes()}")
    return [RandomBases(small, large, by_basis, by_place, group.keys, float(alpha), alpha / rank)]


ALGORITHM = Algorithm(
    "randlora",
    ENDINGS["randlora"],
    build,
    shared=(),
    of_file=OF_FILE["randlora"],
)
