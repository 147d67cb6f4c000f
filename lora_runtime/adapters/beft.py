"""BEFT: Δ of a bias, stored whole beside a weight that stays as it is. arXiv:2509.15974."""

from __future__ import annotations

from typing import ClassVar

from lora_runtime.adapters.base import Algorithm, Group
from lora_runtime.adapters.difference import Difference
from lora_runtime.key_endings import ENDINGS

__all__ = ["ALGORITHM", "BiasDifference", "build"]


class BiasDifference(Difference):
    """A difference of the bias."""

    algorithm: ClassVar[str] = "beft"


def build(group: Group) -> list[BiasDifference]:
    """Return the adapter of one module's bias; ValueError says what is contradictory."""
    (values,) = group.need("bias")
    if values.numel() == 0 or values.shape != (1, values.numel()):
        raise ValueError(f"the bias is no row: {group.shapes()}")
    return [BiasDifference(values[0], group.keys, "bias")]


ALGORITHM = Algorithm("beft", ENDINGS["beft"], build, shared=())
