"""Super and Supra: a sparse change at flat places of a matrix, and with Supra a LoRA beside it. arXiv:2607.09287."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lora_runtime.adapters.base import Adapter, Algorithm, Dense, Group
from lora_runtime.adapters.lora import LowRank
from lora_runtime.key_endings import ENDINGS

__all__ = ["ALGORITHM", "Beside", "Places", "build"]


@dataclass(frozen=True, eq=False)
class Places(Dense):
    """Changes of some elements of a matrix."""

    algorithm: ClassVar[str] = "supertuning"

    places: Tensor  # (n,) integers: row · inputs + column
    values: Tensor  # (n,); those of the same place add up
    least: int  # the number of elements that the weight has at least, for all of the places to be in it
    keys: tuple[str, ...]

    def misfit(self, shape: torch.Size) -> str | None:
        """Return None for a matrix that has all of the places."""
        if len(shape) == 2 and shape.numel() >= self.least:
            return None
        return f"made for a matrix of at least {self.least} elements, the weight is {tuple(shape)}"

    def change(self, weight: Tensor, cast: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the changes at their places, 0 elsewhere."""
        values = cast(self.values)
        return values.new_zeros(weight.numel()).index_add_(0, self.places.to(weight.device), values)


class Beside(LowRank):
    """The LoRA of a Supra."""

    algorithm: ClassVar[str] = "supertuning"


def build(group: Group) -> list[Adapter]:
    """Return the sparse adapter of one module and, where there is one, the LoRA; ValueError says what is wrong."""
    (values,) = group.need("values")
    places = group.tensors.get("indices")
    if places is None:
        raise ValueError("its places are not in the file: it was saved without save_precomputed_indices")
    if values.ndim != 1 or values.numel() == 0 or places.shape != values.shape or places.is_floating_point():
        raise ValueError(f"the places and the changes do not fit together: {group.shapes()}")
    places, least = places.long(), 1
    if not places.is_meta:
        if int(places.min()) < 0:
            raise ValueError("a place with a negative number")
        least = int(places.max()) + 1
    factors = [role for role in ("A", "B") if role in group.tensors]
    apart = tuple(group.key_of[role] for role in factors)
    sparse = Places(places, values, least, tuple(key for key in group.keys if key not in apart))
    if not factors:
        return [sparse]
    up, down = group.need("B", "A")
    if up.ndim != 2 or down.ndim != 2 or up.shape[1] != down.shape[0] or down.numel() == 0:
        raise ValueError(f"the factors do not fit together: {group.shapes()}")
    alpha = group.options.get("lora_alpha")
    if alpha is None:
        raise ValueError("only the adapter_config.json, which is not beside it, tells the scale of its LoRA")
    return [sparse, Beside(up, down, None, apart, float(alpha), alpha / int(down.shape[0]))]


ALGORITHM = Algorithm(
    "supertuning",
    ENDINGS["supertuning"],
    build,
    shared=(),
)
