"""VB-LoRA: a LoRA whose factors are put together from vectors that all modules of the file share.

Li et al. 2024, arXiv:2405.15179. Each piece of a factor is a mixture of the k vectors of the bank with the largest
logits, by the softmax of these. A file saved for use only has the k places and all weights but the last, which makes
their sum 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lora_runtime.adapters.base import Algorithm, Cast, Dense, Group
from lora_runtime.adapters.forms import Factors, Form
from lora_runtime.key_endings import ENDINGS, OF_FILE

__all__ = ["ALGORITHM", "Mixture", "VectorBank", "build"]


@dataclass(frozen=True, eq=False)
class Mixture:
    """Which vectors a factor is made of: `indices` and `weights` are None where the logits tell."""

    logits: Tensor | None  # (…, vectors)
    indices: Tensor | None  # (…, k)
    weights: Tensor | None  # (…, k − 1)
    k: int
    shape: tuple[int, int]  # (…)

    def make(self, bank: Tensor, cast: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the mixed vectors (…, length) of a bank (vectors, length)."""
        if self.logits is not None:
            largest, indices = cast(self.logits).topk(self.k, dim=-1)
            weights = largest.softmax(-1)
        else:
            assert self.indices is not None
            assert self.weights is not None
            indices, weights = self.indices.to(bank.device).long(), cast(self.weights)
            weights = torch.cat([weights, 1 - weights.sum(-1, keepdim=True)], -1)
        mixed = bank.new_zeros(*self.shape, bank.shape[1])
        for place in range(self.k):  # one at a time: all at once would be k times the factor
            mixed += weights[..., place, None] * bank[indices[..., place]]
        return mixed


@dataclass(frozen=True, eq=False)
class VectorBank(Dense):
    """A product of two factors, each mixed from the bank's vectors."""

    algorithm: ClassVar[str] = "vblora"

    bank: Tensor  # (vectors, length)
    up: Mixture  # of (outputs / length, rank)
    down: Mixture  # of (rank, inputs / length)
    keys: tuple[str, ...]

    @property
    def rank(self) -> int:  # type: ignore[override]
        """Return the rank of the product."""
        return self.down.shape[0]

    def misfit(self, shape: torch.Size) -> str | None:
        """Return None where the pieces make a matrix of that shape."""
        length = int(self.bank.shape[1])
        made_for = (self.up.shape[0] * length, self.down.shape[1] * length)
        if shape != made_for:
            return f"made for {made_for}, the weight is {tuple(shape)}"
        # A few logits of a file could stand for factors of any size.
        return f"a rank of {self.rank} for a weight {made_for}" if self.rank > max(made_for) else None

    def change(self, weight: Tensor, cast: Callable[[Tensor], Tensor]) -> Tensor:
        """Return B · A."""
        up, down = self._mixed(weight.shape, cast)
        return up @ down

    def forms(self, shape: torch.Size, cast: Cast, original: Callable[[], Tensor]) -> tuple[Form, ...]:
        """Return both factors, mixed."""
        return (Factors(*self._mixed(shape, cast), 1.0),)

    def _mixed(self, shape: torch.Size, cast: Cast) -> tuple[Tensor, Tensor]:
        bank = cast(self.bank)
        up = self.up.make(bank, cast).transpose(1, 2).reshape(shape[0], self.rank)
        return up, self.down.make(bank, cast).reshape(self.rank, shape[1])


def build(group: Group) -> list[VectorBank]:
    """Return the adapter of one module; ValueError says what is missing or contradictory."""
    (bank,) = group.of_file("vector_bank")
    if bank.ndim != 2 or bank.numel() == 0:
        raise ValueError(f"the bank is no matrix of vectors: vector_bank {tuple(bank.shape)}")
    up, down = (_mixture(group, side, int(bank.shape[0])) for side in ("logits_B", "logits_A"))
    if up.shape[1] != down.shape[0]:
        raise ValueError(f"the ranks of the factors differ: {group.shapes()}")
    return [VectorBank(bank, up, down, group.keys)]


def _mixture(group: Group, side: str, vectors: int) -> Mixture:
    logits = group.tensors.get(side)
    if logits is not None:
        k = group.options.get("topk")
        if k is None:
            raise ValueError("only the adapter_config.json, which is not beside it, tells how many vectors are mixed")
        if logits.ndim != 3 or logits.shape[2] != vectors or not 0 < k <= vectors:
            raise ValueError(f"{vectors} vectors in the bank, of which {k} are mixed: {group.shapes()}")
        return Mixture(logits, None, None, k, (int(logits.shape[0]), int(logits.shape[1])))
    indices, weights = group.need(f"{side}_topk_indices", f"{side}_topk_weights")
    if (
        indices.ndim != 3
        or indices.is_floating_point()
        or indices.shape[2] == 0
        or weights.shape != (*indices.shape[:2], indices.shape[2] - 1)
    ):
        raise ValueError(f"the places and the weights do not fit together: {group.shapes()}")
    if indices.numel() and not indices.is_meta and not 0 <= int(indices.min()) <= int(indices.max()) < vectors:
        raise ValueError(f"a place outside of the bank's {vectors} vectors")
    rows, columns, k = indices.shape
    return Mixture(None, indices, weights, k, (rows, columns))


ALGORITHM = Algorithm(
    "vblora",
    ENDINGS["vblora"],
    build,
    shared=(),
    of_file=OF_FILE["vblora"],
)
