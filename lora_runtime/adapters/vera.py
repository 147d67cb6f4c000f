"""VeRA: delta = diag(λ_b)·B·diag(λ_d)·A, where A and B are random, frozen, and the same for all modules of the file.

Kopiczko et al. 2023, arXiv:2310.11454. A and B are as large as the largest module; each uses the rows and columns
that it needs. PVeRA (arXiv:2512.07703) learns a distribution of λ_d·A instead; what PEFT merges is its mean, the first
half of both.

PEFT can leave A and B out of the file and draw them anew from a seed, for the sizes of all modules it finds in a
model. One module does not tell these sizes, so such a file is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lora_runtime.adapters.base import Algorithm, Cast, Dense, Group
from lora_runtime.adapters.forms import Factors, Form
from lora_runtime.key_endings import ENDINGS, OF_FILE

__all__ = ["PVERA", "VERA", "SharedFactors", "build_pvera", "build_vera"]


@dataclass(frozen=True, eq=False)
class SharedFactors(Dense):
    """Two factors of the whole file, with a number for each output and each rank of one module."""

    algorithm: ClassVar[str] = "vera"

    up: Tensor  # B (most outputs, rank)
    down: Tensor  # A (rank, most inputs)
    by_output: Tensor  # λ_b (out,)
    by_rank: Tensor  # λ_d (rank,)
    keys: tuple[str, ...]

    @property
    def rank(self) -> int:  # type: ignore[override]
        """Return the number of rows of A."""
        return int(self.down.shape[0])

    def misfit(self, shape: torch.Size) -> str | None:
        """Return None where the weight has as many outputs, and no more inputs than A."""
        outputs, inputs = self.by_output.numel(), int(self.down.shape[1])
        if len(shape) == 2 and shape[0] == outputs and shape[1] <= inputs:
            return None
        return f"made for {outputs} outputs and at most {inputs} inputs, the weight is {tuple(shape)}"

    def change(self, weight: Tensor, cast: Callable[[Tensor], Tensor]) -> Tensor:
        """Return (λ_b · B) @ (λ_d · A) of the weight's size."""
        up, down = self._own(weight.shape, cast)
        return up @ down

    def forms(self, shape: torch.Size, cast: Cast, original: Callable[[], Tensor]) -> tuple[Form, ...]:
        """Return both factors of the weight's size."""
        return (Factors(*self._own(shape, cast), 1.0),)

    def _own(self, shape: torch.Size, cast: Cast) -> tuple[Tensor, Tensor]:
        outputs, inputs = shape
        up = cast(self.by_output)[:, None] * cast(self.up[:outputs])
        return up, cast(self.by_rank)[:, None] * cast(self.down[:, :inputs])


class MeanFactors(SharedFactors):
    """The mean of factors that are drawn anew for each picture while they are trained."""

    algorithm: ClassVar[str] = "pvera"


def build_vera(group: Group) -> list[SharedFactors]:
    """Return the adapter of one module; ValueError says what is missing or contradictory."""
    by_output, by_rank = group.need("lambda_b", "lambda_d")
    up, down = group.of_file("B", "A")
    _check(group, up, down, by_output, by_rank)
    return [SharedFactors(up, down, by_output, by_rank, group.keys)]


def build_pvera(group: Group) -> list[SharedFactors]:
    """Return the adapter of one module; ValueError says what is missing or contradictory."""
    if group.options.get("sample_at_inference"):
        raise ValueError("PVeRA with sample_at_inference draws its factors anew for each input: no static change")
    by_output, by_rank = group.need("lambda_b", "lambda_d")
    up, down = group.of_file("B", "A")
    if by_rank.shape != down.shape[:1] or by_rank.shape[0] % 2:
        raise ValueError(f"not a mean and a variance for each rank: A {tuple(down.shape)}, {group.shapes()}")
    half = by_rank.shape[0] // 2
    down, by_rank = down[:half], by_rank[:half]
    _check(group, up, down, by_output, by_rank)
    return [MeanFactors(up, down, by_output, by_rank, group.keys)]


def _check(group: Group, up: Tensor, down: Tensor, by_output: Tensor, by_rank: Tensor) -> None:
    rank = by_rank.shape[0] if by_rank.ndim == 1 else -1
    fits = up.ndim == down.ndim == 2 and (up.shape[1], down.shape[0]) == (rank, rank)
    if not fits or by_output.ndim != 1 or by_output.shape[0] > up.shape[0]:
        raise ValueError(
            f"the factors do not fit together: A {tuple(down.shape)}, B {tuple(up.shape)}, {group.shapes()}"
        )


def _algorithm(name: str, build: Callable[[Group], Sequence[SharedFactors]]) -> Algorithm:
    return Algorithm(name, ENDINGS[name], build, shared=(), of_file=OF_FILE[name])


VERA = _algorithm("vera", build_vera)
PVERA = _algorithm("pvera", build_pvera)
