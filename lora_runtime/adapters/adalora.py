"""AdaLoRA: delta = alpha/(r₀ + 1e-5) · B·diag(E)·A, where r₀ is the rank that its training began with.

Zhang et al. 2023, arXiv:2303.10512. Training drops ranks of some modules; what they are divided by stays. A and B are
keys of LoRA's, so this takes the place of the LoRA that they would be.
"""

from __future__ import annotations

from typing import ClassVar

from lora_runtime.adapters.base import Algorithm, Group
from lora_runtime.adapters.lora import LowRank
from lora_runtime.key_endings import ENDINGS

__all__ = ["ALGORITHM", "build"]

_EPSILON = 1e-5  # PEFT's, which keeps a rank of 0 from a division by it


class Adaptive(LowRank):
    """A LoRA with a weight for each rank, which is part of the factor on the input side here."""

    algorithm: ClassVar[str] = "adalora"


def build(group: Group) -> list[Adaptive]:
    """Return the adapter that takes the place of `group.inner`; ValueError says what is missing or contradictory."""
    (values,) = group.need("values")
    factors = group.inner[0] if len(group.inner) == 1 else None
    if type(factors) is not LowRank or factors.mid is not None:
        raise ValueError("the weights of ranks (AdaLoRA) without their factors")
    if values.numel() != factors.rank:
        raise ValueError(f"{factors.rank} ranks in the factors (AdaLoRA): {group.shapes()}")
    alpha, start = group.options.get("lora_alpha"), group.options.get("init_r")
    if alpha is None or start is None:
        raise ValueError("only the adapter_config.json, which is not beside it, tells its scale")
    # float32: a product in the file's half precision would be rounded.
    down = factors.down.flatten(1).float() * values.reshape(-1, 1).float().to(factors.down.device)
    scale = (alpha if alpha > 0 else float(start)) / (start + _EPSILON)
    keys = (*factors.keys, *group.keys)
    return [Adaptive(factors.up, down.reshape(factors.down.shape), None, keys, float(alpha), scale)]


ALGORITHM = Algorithm("adalora", ENDINGS["adalora"], build, shared=(), wraps=True)
