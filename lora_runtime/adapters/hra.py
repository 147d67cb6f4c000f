"""HRA: W′ = W₀ · Π(I − 2·uᵢuᵢᵀ), a chain of Householder reflections of the inputs.

Yuan et al. 2024, arXiv:2405.17484. Where the configuration has the vectors made orthogonal (`apply_GS`), the chain is
I − 2·P with P the projection onto what they span.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lora_runtime.adapters.base import Algorithm, Cast, Dense, Group
from lora_runtime.adapters.forms import Form, Map, low_rank
from lora_runtime.key_endings import ENDINGS

__all__ = ["ALGORITHM", "Reflections", "build"]


@dataclass(frozen=True, eq=False)
class Reflections(Dense):
    """Reflections of the inputs, one after the other."""

    algorithm: ClassVar[str] = "hra"
    base_dependent: ClassVar[bool] = True

    vectors: Tensor  # (in·k…, rank): a column for each reflection
    orthogonal: bool  # whether they are made orthogonal first
    keys: tuple[str, ...]
    rank: int

    def misfit(self, shape: torch.Size) -> str | None:
        """Return None where the weight has as many inputs."""
        count = int(self.vectors.shape[0])
        if len(shape) >= 2 and math.prod(shape[1:]) == count:
            return None
        return f"made for {count} inputs, the weight is {tuple(shape)}"

    def change(self, weight: Tensor, cast: Callable[[Tensor], Tensor]) -> Tensor:
        """Return W₀ · Π(I − 2·uᵢuᵢᵀ) − W₀."""
        base = cast(weight).flatten(1)
        if self.orthogonal:
            basis, _ = self._chain(cast)
            return -2.0 * (base @ basis) @ basis.mT
        units, chain = self._chain(cast)
        return -(base @ units) @ chain

    def forms(self, shape: torch.Size, cast: Cast, original: Callable[[], Tensor]) -> tuple[Form, ...] | None:
        """Return the chain less I for the inputs; None for a kernel, whose places it reflects too."""
        if math.prod(shape[2:]) != 1:
            return None
        units, chain = self._chain(cast)
        return (Map("before", low_rank, (units * -2.0 if self.orthogonal else -units, chain)),)

    def _chain(self, cast: Cast) -> tuple[Tensor, Tensor]:
        """Return U (in·k…, rank) and T·Uᵀ (rank, in·k…) of a chain I − U·T·Uᵀ; half of it where they are orthogonal."""
        vectors = cast(self.vectors)
        if self.orthogonal:
            basis: Tensor = torch.linalg.qr(vectors).Q
            return basis, basis.mT
        norms = torch.linalg.vector_norm(vectors, dim=0)
        # What has no length has no direction either, and reflects nothing.
        units = vectors / torch.where(norms > 0, norms, 1.0)
        # The chain is I − U·T·Uᵀ with T⁻¹ = ½·I + the part of Uᵀ·U above its diagonal (Schreiber and Van Loan 1989):
        # two thin products, where reflecting W₀ by each vector reads and writes all of it every time.
        inverse = torch.triu(units.mT @ units, diagonal=1) + 0.5 * torch.eye(
            self.rank, dtype=units.dtype, device=units.device
        )
        chain: Tensor = torch.linalg.solve_triangular(inverse, units.mT, upper=True)
        return units, chain


def build(group: Group) -> list[Reflections]:
    """Return the adapter of one module; ValueError says what is missing or contradictory."""
    (vectors,) = group.need("vectors")
    if vectors.ndim != 2 or vectors.numel() == 0:
        raise ValueError(f"the vectors are no columns: {group.shapes()}")
    orthogonal = group.options.get("apply_GS")
    if orthogonal is None:
        raise ValueError("only the adapter_config.json, which is not beside it, tells how its vectors are meant")
    return [Reflections(vectors, bool(orthogonal), group.keys, int(vectors.shape[1]))]


ALGORITHM = Algorithm("hra", ENDINGS["hra"], build, shared=())
