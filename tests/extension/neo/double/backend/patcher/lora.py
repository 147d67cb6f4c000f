"""Patches of one weight, carried out one after the other."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor


class WeightAdapterBase:
    """A patch that makes W′ itself."""

    name: str
    loaded_keys: set[str]
    weights: list[Any]

    def calculate_weight(self, *args: Any) -> Tensor:
        raise NotImplementedError


weight_adapter = SimpleNamespace(WeightAdapterBase=WeightAdapterBase)


@torch.inference_mode()
def merge_lora_to_weight(
    patches: list[Any], weight: Tensor, key: str, computation_dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return W′; the host's own kind of patch is a plain difference."""
    for strength, value, strength_model, offset, function, _ in patches:
        if isinstance(value, WeightAdapterBase):
            weight = value.calculate_weight(
                weight, key, strength, strength_model, offset, function or (lambda a: a), computation_dtype
            )
        else:
            weight += strength * value.to(weight)
    return weight
