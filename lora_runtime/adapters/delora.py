"""DeLoRA: Δ = B · diag(λ / (r·‖aᵢ‖·‖bᵢ‖)) · A · diag(w), a LoRA whose ranks have a length of their own.

Bini et al. 2025, arXiv:2503.18225. aᵢ and bᵢ are the rows of A and the columns of B, w the lengths of the columns of
the weight that it was trained on, which are in the file.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from lora_runtime.adapters.base import Algorithm, Group
from lora_runtime.adapters.lora import LowRank
from lora_runtime.key_endings import ENDINGS

__all__ = ["ALGORITHM", "Bounded", "build"]

_SHORTEST = 1e-4  # PEFT's least length of a row or column, which keeps it from a division by zero


class Bounded(LowRank):
    """A LoRA with normalised factors; the lengths are part of the factors here."""

    algorithm: ClassVar[str] = "delora"


def build(group: Group) -> list[Bounded]:
    """Return the adapter of one module; ValueError says what is missing or contradictory."""
    up, down, boundary, columns = group.need("B", "A", "lambda", "w_norm")
    if up.ndim != 2 or down.ndim != 2 or up.shape[1] != down.shape[0] or down.numel() == 0:
        raise ValueError(f"the factors do not fit together: {group.shapes()}")
    if boundary.numel() != 1 or columns.shape != down.shape[1:]:
        raise ValueError(f"neither one boundary nor a length for each input: {group.shapes()}")
    # float32: lengths in the file's half precision would be rounded.
    up, down = up.float() / _lengths(up, 0), down.float() / _lengths(down, 1)
    scale = float(boundary.item()) / int(down.shape[0])
    down = down * columns.float().to(down.device)  # of an outline, a single number has a device and the rest has none
    return [Bounded(up, down, None, group.keys, None, scale)]


def _lengths(factor: Tensor, dim: int) -> Tensor:
    """Return the lengths along one dimension, which stays with an extent of 1."""
    lengths: Tensor = torch.linalg.vector_norm(factor.float(), dim=dim, keepdim=True)
    return lengths.clamp(min=_SHORTEST)


ALGORITHM = Algorithm(
    "delora",
    ENDINGS["delora"],
    build,
    shared=(),
)
