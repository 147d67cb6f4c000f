"""MiSS: each block of r neighbouring inputs gets the same change, Δ[:, j] = B[j mod r, :].

Kang and Yin 2024, arXiv:2409.15371; PEFT called it Bone at first. Two variants: "mini", in which groups of outputs
share it too, and "bat", Δ = W₀·B + B for each block of (r, r).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lora_runtime.adapters.base import Algorithm, Cast, Dense, Group
from lora_runtime.adapters.forms import Factors, Form, pays
from lora_runtime.key_endings import ENDINGS

__all__ = ["ALGORITHM", "Blocks", "Shared", "build"]


@dataclass(frozen=True, eq=False)
class Shared(Dense):
    """One change for all blocks of inputs."""

    algorithm: ClassVar[str] = "miss"

    block: Tensor  # (r, out), of which a "mini" has a part that repeats
    mini: bool
    keys: tuple[str, ...]
    rank: int

    def misfit(self, shape: torch.Size) -> str | None:
        """Return None for a matrix with as many outputs, or a multiple of them, and at least r inputs."""
        rank, count = self.block.shape
        if len(shape) == 2 and shape[1] >= rank and (shape[0] % count == 0 if self.mini else shape[0] == count):
            return None
        outputs = f"a multiple of {count}" if self.mini else f"{count}"
        return f"made for {outputs} outputs and blocks of {rank} inputs, the weight is {tuple(shape)}"

    def change(self, weight: Tensor, cast: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the block, repeated over inputs and outputs; the last inputs may be less than a block."""
        outputs, inputs = weight.shape
        rank, count = self.block.shape
        return cast(self.block).T.repeat(outputs // count, -(-inputs // rank))[:, :inputs]

    def forms(self, shape: torch.Size, cast: Cast, original: Callable[[], Tensor]) -> tuple[Form, ...] | None:
        """Return two factors, of which the one on the side of the inputs sums the blocks; None for a large block."""
        (rank, count), (outputs, inputs) = self.block.shape, shape
        if not pays(int(rank), shape):
            return None
        block = cast(self.block)
        down = torch.eye(rank, dtype=block.dtype, device=block.device).repeat(1, -(-inputs // rank))[:, :inputs]
        return (Factors(block.T.repeat(outputs // count, 1), down, 1.0),)


@dataclass(frozen=True, eq=False)
class Blocks(Dense):
    """A change of its own for each block of outputs, which depends on W₀."""

    algorithm: ClassVar[str] = "miss"
    base_dependent: ClassVar[bool] = True

    blocks: Tensor  # (out / r, r, r)
    keys: tuple[str, ...]
    rank: int

    def misfit(self, shape: torch.Size) -> str | None:
        """Return None where the weight is a matrix of as many blocks of outputs, and whole blocks of inputs."""
        count, rank, _ = self.blocks.shape
        if len(shape) == 2 and shape[0] == count * rank and shape[1] % rank == 0:
            return None
        return f"made for {count * rank} outputs and blocks of {rank} inputs, the weight is {tuple(shape)}"

    def change(self, weight: Tensor, cast: Callable[[Tensor], Tensor]) -> Tensor:
        """Return W₀·B + B, block by block."""
        count, rank, _ = self.blocks.shape
        blocks = cast(self.blocks)[:, None]
        base = cast(weight).reshape(count, rank, -1, rank).transpose(1, 2)  # (out/r, in/r, r, r)
        return (base @ blocks + blocks).transpose(1, 2)


def build(group: Group) -> list[Shared] | list[Blocks]:
    """Return the adapter of one module; ValueError says what is contradictory."""
    (block,) = group.need("block")
    if block.numel() == 0 or block.ndim not in (2, 3) or (block.ndim == 3 and block.shape[1] != block.shape[2]):
        raise ValueError(f"the block is neither a matrix nor square blocks: {group.shapes()}")
    if block.ndim == 3:
        return [Blocks(block, group.keys, int(block.shape[1]))]
    return [Shared(block, group.options.get("init_weights") == "mini", group.keys, int(block.shape[0]))]


ALGORITHM = Algorithm("miss", ENDINGS["miss"], build, shared=())
