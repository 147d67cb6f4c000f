"""IA³ as PEFT stores it: W′ = W₀ · l along the outputs or the inputs, in which 1 changes nothing.

(IA)³: Liu et al. 2022, arXiv:2205.05638. A layer that is scaled by its outputs has its bias scaled too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lora_runtime.adapters.base import Adapter, Algorithm, Cast, Dense, Group
from lora_runtime.adapters.ia3 import Ia3
from lora_runtime.key_endings import ENDINGS

__all__ = ["ALGORITHM", "BiasFactors", "LayerFactors", "build"]


class LayerFactors(Ia3):
    """A factor for each input or output of a layer, 1 where it changes nothing."""

    def change(self, weight: Tensor, cast: Callable[[Tensor], Tensor]) -> Tensor:
        """Return W₀ · (l − 1)."""
        extents = [-1 if axis == int(self.on_input) else 1 for axis in range(weight.ndim)]
        return cast(weight) * (cast(self.vector) - 1).reshape(extents)

    def change_of_factors(self, cast: Cast) -> Tensor:
        """Return l − 1."""
        return cast(self.vector).flatten() - 1


@dataclass(frozen=True, eq=False)
class BiasFactors(Dense):
    """The factors of a layer's outputs, for its bias."""

    algorithm: ClassVar[str] = "ia3"
    base_dependent: ClassVar[bool] = True

    vector: Tensor  # as many numbers as the layer has outputs
    keys: tuple[str, ...] = ()  # the key is that of the weight's adapter; a layer without a bias needs none
    parameter: str = "bias"

    def misfit(self, shape: torch.Size) -> str | None:
        """Return None where the bias has as many elements."""
        count = self.vector.numel()
        return None if shape == (count,) else f"made for {count} outputs, the bias is {tuple(shape)}"

    def change(self, weight: Tensor, cast: Callable[[Tensor], Tensor]) -> Tensor:
        """Return b₀ · (l − 1)."""
        return cast(weight) * (cast(self.vector).flatten() - 1)


def build(group: Group) -> list[Adapter]:
    """Return the adapter of the weight and, where outputs are scaled, that of the bias."""
    (vector,) = group.need("factors")
    if vector.ndim < 2 or vector.numel() == 0 or max(vector.shape) != vector.numel():
        raise ValueError(f"the factors are no vector: {group.shapes()}")
    # A linear layer tells by its shape, (out, 1) or (1, in); a convolution has (1, channels, 1…) for both.
    on_input = _feedforward(group) if vector.ndim > 2 or vector.numel() == 1 else vector.shape[0] == 1
    weight = LayerFactors(vector, on_input, group.keys)
    return [weight] if on_input else [weight, BiasFactors(vector)]


def _feedforward(group: Group) -> bool:
    """Return whether the configuration counts this module among those that are scaled by their inputs."""
    listed = group.options.get("feedforward_modules")
    if listed is None:
        raise ValueError("only the adapter_config.json, which is not beside it, tells inputs from outputs")
    if isinstance(listed, str):  # a regular expression from a file could run for ever
        raise ValueError(f"its feedforward_modules {listed!r:.40} is a pattern and no list of names")
    return any(group.stem.endswith(ending) for ending in listed)


ALGORITHM = Algorithm("ia3 of PEFT", ENDINGS["ia3 of PEFT"], build, shared=())
