"""W′ of the patches of one weight, one after the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from comfy.weight_adapter import WeightAdapterBase


def calculate_weight(patches: list[Any], weight: Tensor, key: str, intermediate_dtype: Any = torch.float32) -> Tensor:
    for strength, value, strength_model, offset, function in patches:
        if isinstance(value, WeightAdapterBase):
            assert value.calculate_shape(key) is None
            made = value.calculate_weight(
                weight, key, strength, strength_model, offset, function or (lambda a: a), intermediate_dtype, None
            )
            weight = weight if made is None else made
        else:
            weight += strength * value.to(weight.dtype)
    return weight


def prefetched(value: Any) -> Any:
    """Return a copy of what a patch holds, tensors in another place: an adapter is made anew from its two fields."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, WeightAdapterBase):
        return type(value)(value.loaded_keys, prefetched(value.weights))
    if isinstance(value, (tuple, list)):
        return type(value)(map(prefetched, value))
    return value
