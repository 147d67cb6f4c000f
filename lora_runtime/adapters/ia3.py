"""IA³: Δ(W₀) = W₀ · w along the inputs or the outputs, as LyCORIS stores it: 0 changes nothing.

(IA)³: Liu et al. 2022, arXiv:2205.05638; LyCORIS, arXiv:2309.14859. PEFT's own `ia3_l`, in which 1 changes nothing, is
in peft_ia3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lora_runtime.adapters.base import Algorithm, Cast, Dense, Group
from lora_runtime.adapters.forms import Form, Map, multiply
from lora_runtime.key_endings import ENDINGS

__all__ = ["ALGORITHM", "Ia3", "build"]


@dataclass(frozen=True, eq=False)
class Ia3(Dense):
    """A factor for each input or output of a layer."""

    algorithm: ClassVar[str] = "ia3"
    base_dependent: ClassVar[bool] = True

    vector: Tensor  # (channels,), for a convolution (1, channels, 1…)
    on_input: bool
    keys: tuple[str, ...]

    def misfit(self, shape: torch.Size) -> str | None:
        """Return None where that side of the weight has as many channels."""
        count = self.vector.numel()
        if len(shape) >= 2 and shape[int(self.on_input)] == count:
            return None
        return f"made for {count} {'inputs' if self.on_input else 'outputs'}, the weight is {tuple(shape)}"

    def change(self, weight: Tensor, cast: Callable[[Tensor], Tensor]) -> Tensor:
        """Return W₀ · w."""
        lead = 1 if self.on_input else 0
        extents = [-1 if axis == lead else 1 for axis in range(weight.ndim)]
        return cast(weight) * cast(self.vector).reshape(extents)

    def forms(self, shape: torch.Size, cast: Cast, original: Callable[[], Tensor]) -> tuple[Form, ...]:
        """Return the factors of the inputs or of the outputs."""
        return (Map("before" if self.on_input else "output", multiply, (self.change_of_factors(cast),)),)

    def change_of_factors(self, cast: Cast) -> Tensor:
        """Return by how much each factor differs from one that changes nothing, (channels,)."""
        return cast(self.vector).flatten()


def build(group: Group) -> list[Ia3]:
    """Return the adapter of one module; ValueError says what is missing or contradictory."""
    vector, on_input = group.need("weight", "on_input")
    if on_input.numel() != 1 or vector.numel() == 0 or max(vector.shape, default=1) != vector.numel():
        raise ValueError(f"the factors are no vector: {group.shapes()}")
    return [Ia3(vector, bool(on_input.item()), group.keys)]


ALGORITHM = Algorithm("ia3", ENDINGS["ia3"], build, companions={".weight": "ia3/weight"}, shared=())
