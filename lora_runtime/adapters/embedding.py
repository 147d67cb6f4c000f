"""LoRA of an embedding: delta = scale · (B·A)ᵀ for a table of one row a token.

PEFT (arXiv:2106.09685 for the method) stores it as A (r, tokens) and B (dim, r), so the factors of the table's own
layout are their transposes.
"""

from __future__ import annotations

from lora_runtime.adapters.base import Algorithm, Group
from lora_runtime.adapters.lora import LowRank
from lora_runtime.key_endings import ENDINGS

__all__ = ["ALGORITHM", "LowRankTable", "build"]


class LowRankTable(LowRank):
    """A product of two factors for a table: up (tokens, rank) and down (rank, dim). Its lengths (DoRA) are by `dim`."""


def build(group: Group) -> list[LowRankTable]:
    """Return the adapter of one table; ValueError says what is missing or contradictory."""
    a, b = group.need("A", "B")
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
        raise ValueError(f"the factors do not fit together: {group.shapes()}")
    return [LowRankTable(a.t(), b.t(), None, group.keys, group.alpha, group.scale_for(int(a.shape[0])))]


ALGORITHM = Algorithm(
    "lora of an embedding",
    ENDINGS["lora of an embedding"],
    build,
    configured=True,
)
