"""DEFT and PaRa: what the weight has in a few directions of its outputs is taken away, and with DEFT replaced.

DEFT: Δ(W₀) = Q·(c·R − Kᵀ·W₀), Kumar et al. 2025, arXiv:2509.22793; PaRa, Chen et al., ICLR 2025, has no R.
The directions are the columns of a factor P: made orthogonal, Q = K, or as they are, Q = P and K = max(P, 0). c is
alpha/rank, or 1 where the configuration has no alpha.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lora_runtime.adapters.base import Algorithm, Cast, Dense, Group
from lora_runtime.adapters.forms import Factors, Form, Map, low_rank
from lora_runtime.key_endings import ENDINGS

__all__ = ["ALGORITHM", "Subspace", "build"]


@dataclass(frozen=True, eq=False)
class Subspace(Dense):
    """Replaced directions of the outputs."""

    algorithm: ClassVar[str] = "deft"
    base_dependent: ClassVar[bool] = True

    directions: Tensor  # (out, rank)
    instead: Tensor | None  # (rank, in)
    orthogonal: bool
    keys: tuple[str, ...]
    rank: int
    alpha: float | None
    scale: float

    def misfit(self, shape: torch.Size) -> str | None:
        """Return None where the weight is a matrix with as many outputs and, if there is an R, inputs."""
        outputs, inputs = int(self.directions.shape[0]), None if self.instead is None else int(self.instead.shape[1])
        if len(shape) == 2 and shape[0] == outputs and inputs in (None, shape[1]):
            return None
        count = f"{outputs} outputs" if inputs is None else f"{(outputs, inputs)}"
        return f"made for {count}, the weight is {tuple(shape)}"

    def change(self, weight: Tensor, cast: Callable[[Tensor], Tensor]) -> Tensor:
        """Return Q·(c·R − Kᵀ·W₀)."""
        directions, taken = self._directions(cast)
        found = taken.T @ cast(weight)
        return directions @ (-found if self.instead is None else cast(self.instead) * self.scale - found)

    def forms(self, shape: torch.Size, cast: Cast, original: Callable[[], Tensor]) -> tuple[Form, ...]:
        """Return what is taken from the outputs, and two factors for what replaces it."""
        directions, taken = self._directions(cast)
        away = Map("output", low_rank, (-directions, taken.T))
        return (away,) if self.instead is None else (away, Factors(directions, cast(self.instead), self.scale))

    def _directions(self, cast: Cast) -> tuple[Tensor, Tensor]:
        """Return Q and K, (out, rank)."""
        directions = cast(self.directions)
        if self.orthogonal:
            basis: Tensor = torch.linalg.qr(directions).Q
            return basis, basis
        return directions, directions.relu()


def build(group: Group) -> list[Subspace]:
    """Return the adapter of one module; ValueError says what is missing or contradictory."""
    (directions,) = group.need("P")
    instead = group.tensors.get("R")
    if directions.ndim != 2 or directions.numel() == 0:
        raise ValueError(f"the directions are no columns: {group.shapes()}")
    rank = int(directions.shape[1])
    if instead is not None and (instead.ndim != 2 or instead.shape[0] != rank):
        raise ValueError(f"what replaces the directions does not fit to them: {group.shapes()}")
    method, alpha = group.options.get("decomposition_method"), group.options.get("alpha")
    if method is None:
        raise ValueError("only the adapter_config.json, which is not beside it, tells how its directions are meant")
    if (instead is None) != group.options["para"]:
        raise ValueError(f"a PaRa has no R and a DEFT has one: {group.shapes()}")
    return [Subspace(directions, instead, method == "qr", group.keys, rank, alpha, alpha / rank if alpha else 1.0)]


ALGORITHM = Algorithm("deft", ENDINGS["deft"], build, shared=())
