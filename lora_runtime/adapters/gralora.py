"""GraLoRA: the weight in N × N blocks, each with a LoRA of its own; a "hybrid" has a LoRA of the whole beside them.

Jung et al. 2025, arXiv:2505.20355. The block of outputs m and inputs n is the product of the n-th of N parts of the
ranks of B[m] and the m-th of those of A[n]. The scale is alpha / (ranks of a block row + ranks of the whole).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lora_runtime.adapters.base import Algorithm, Cast, Dense, Group
from lora_runtime.adapters.forms import Factors, Form, Map
from lora_runtime.key_endings import ENDINGS

__all__ = ["ALGORITHM", "Granular", "build"]


@dataclass(frozen=True, eq=False)
class Granular(Dense):
    """A LoRA for each block of a weight."""

    algorithm: ClassVar[str] = "gralora"

    down: Tensor  # (N, in / N, r)
    up: Tensor  # (N, r, out / N)
    whole: tuple[Tensor, Tensor] | None  # (out, r′) and (r′, in)
    keys: tuple[str, ...]
    rank: int
    alpha: float
    scale: float

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """The shape of the weight that it was trained on."""
        count = int(self.down.shape[0])
        return (count * int(self.up.shape[2]), count * int(self.down.shape[1]))

    def misfit(self, shape: torch.Size) -> str | None:
        """Return None where the blocks make a weight of that shape."""
        made_for = self.weight_shape
        return None if tuple(shape) == made_for else f"made for {made_for}, the weight is {tuple(shape)}"

    def change(self, weight: Tensor, cast: Callable[[Tensor], Tensor]) -> Tensor:
        """Return scale · the blocks' products, and that of the whole."""
        count, inputs, rank = self.down.shape
        down = cast(self.down).reshape(count, inputs, count, rank // count)  # (n, input, m, rank)
        up = cast(self.up).reshape(count, count, rank // count, -1)  # (m, n, rank, output)
        product = torch.einsum("mnro,nimr->moni", up, down).reshape(weight.shape)
        if self.whole is not None:
            product = product + cast(self.whole[0]) @ cast(self.whole[1])
        return product * self.scale

    def forms(self, shape: torch.Size, cast: Cast, original: Callable[[], Tensor]) -> tuple[Form, ...]:
        """Return the products of all blocks, and the factors of the whole."""
        count, inputs, rank = self.down.shape
        down = cast(self.down).reshape(count, inputs, count, rank // count) * self.scale
        up = cast(self.up).reshape(count, count, rank // count, -1)
        blocks = Map("input", by_grains, (down, up))
        return (
            (blocks,) if self.whole is None else (blocks, Factors(cast(self.whole[0]), cast(self.whole[1]), self.scale))
        )


def by_grains(values: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """Return the sum of the blocks' products for each vector, from (n, input, m, rank) and (m, n, rank, output)."""
    inner = torch.einsum("...ni,nimr->...mnr", values.reshape(*values.shape[:-1], *down.shape[:2]), down)
    return torch.einsum("...mnr,mnro->...mo", inner, up).flatten(-2)


def build(group: Group) -> list[Granular]:
    """Return the adapter of one module; ValueError says what is missing or contradictory."""
    down, up = group.need("A", "B")
    fit = down.ndim == up.ndim == 3 and down.shape[0] == up.shape[0] and down.shape[2] == up.shape[1]
    if not fit or down.numel() == 0 or down.shape[2] % down.shape[0]:
        raise ValueError(f"the factors are not those of equal blocks: {group.shapes()}")
    count, inputs, rank = down.shape
    whole = None
    if "A_general" in group.tensors or "B_general" in group.tensors:
        general = group.need("B_general", "A_general")
        ranks = general[1].shape[0] if general[1].ndim else 0
        if [tuple(factor.shape) for factor in general] != [(count * up.shape[2], ranks), (ranks, count * inputs)]:
            raise ValueError(f"the factors of the whole do not fit to those of the blocks: {group.shapes()}")
        whole = general[0], general[1]
        rank += ranks
    alpha = group.options.get("alpha")
    if alpha is None:
        raise ValueError("only the adapter_config.json, which is not beside it, tells its scale")
    return [Granular(down, up, whole, group.keys, int(rank), float(alpha), alpha / rank)]


ALGORITHM = Algorithm(
    "gralora",
    ENDINGS["gralora"],
    build,
    shared=(),
)
