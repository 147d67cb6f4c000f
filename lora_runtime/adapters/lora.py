"""LoRA and LoCon: delta = alpha/rank · up @ down, for linear layers and convolutions of any dimension.

LoRA: Hu et al. 2021, arXiv:2106.09685. LoCon, with or without the Tucker core `lora_mid`: LyCORIS, arXiv:2309.14859.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lora_runtime.adapters.base import Adapter, Algorithm, Factors, Group, no_autocast

__all__ = ["ALGORITHM", "LowRank", "build"]

# (spelling, ending of the factor on the output side, of the one on the input side, of the core)
_SPELLINGS = (
    ("kohya", ".lora_up.weight", ".lora_down.weight", ".lora_mid.weight"),
    ("peft", ".lora_B.weight", ".lora_A.weight", None),
    ("peft bare", ".lora_B", ".lora_A", None),
    ("diffusers", ".lora.up.weight", ".lora.down.weight", None),
    ("processor", "_lora.up.weight", "_lora.down.weight", None),
    ("text encoder", ".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight", None),
)


def _endings() -> Iterator[tuple[str, str]]:
    for spelling, up, down, mid in _SPELLINGS:
        yield up, f"{spelling}/up"
        yield down, f"{spelling}/down"
        if mid is not None:
            yield mid, f"{spelling}/mid"


@dataclass(frozen=True, eq=False)
class LowRank(Adapter):
    """A product of two factors, and between them, in the Tucker form, a core with the kernel."""

    algorithm: ClassVar[str] = "lora"

    up: Tensor  # (out, rank, 1…)
    down: Tensor  # (rank, in/groups, k…); with a core (rank, in/groups, 1…)
    mid: Tensor | None  # (rank, rank, k…)
    keys: tuple[str, ...]
    alpha: float | None
    scale: float

    @property
    def rank(self) -> int:  # type: ignore[override]
        """Return the number of rows of the factor on the input side."""
        return int(self.down.shape[0])

    @property
    def made_for(self) -> tuple[int, ...]:
        """Return the shape of the weight that it was trained on, as far as its factors tell."""
        kernel = self.down.shape[2:] if self.mid is None else self.mid.shape[2:]
        return (int(self.up.shape[0]), *self.down.shape[1:2], *kernel)

    def misfit(self, shape: torch.Size) -> str | None:
        """Return None where the factors give a weight of that shape.

        Files store the factors of a linear layer as 1×1 convolutions and the other way round, and the kernel of a
        convolution flattened, so what counts is the shape without trailing ones, or the size of the flattened side.
        """
        made_for = self.made_for
        flat_fits = len(made_for) == 2 and made_for[1] == math.prod(shape[1:])
        if len(shape) >= 2 and made_for[0] == shape[0] and (flat_fits or _trim(made_for) == _trim(shape)):
            return None
        return f"made for {made_for}, the weight is {tuple(shape)}"

    def factors(self) -> Factors:
        """Return up (out, rank) and down (rank, in·k…): views in the file's dtype, or float32 with a core."""
        down = self.down if self.mid is None else _fold(self.mid, self.down)
        return Factors(self.up.flatten(1), down.flatten(1), self.scale)

    def delta(self, weight: Tensor) -> Tensor:
        """Return scale · up @ down in float32, in the shape and on the device of `weight`."""
        factors = self.factors()
        # Inside autocast a float32 product would be rounded to bfloat16.
        with no_autocast(weight.device):
            up = factors.up.to(weight.device, torch.float32) * factors.scale
            return (up @ factors.down.to(weight.device, torch.float32)).reshape(weight.shape)


def _trim(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape without its trailing ones; the first dimension stays."""
    length = len(shape)
    while length > 1 and shape[length - 1] == 1:
        length -= 1
    return tuple(shape[:length])


def _fold(mid: Tensor, down: Tensor) -> Tensor:
    """Return the float32 factor (m, in, k…) that core (m, n, k…) and down (n, in, 1…) make together."""
    with no_autocast(mid.device):
        return torch.einsum("mn...,nj->mj...", mid.float(), down.float().reshape(down.shape[:2]))


def build(group: Group) -> LowRank:
    """Return the adapter of one module; ValueError says what is missing or contradictory."""
    up, down, mid = (group.tensors.get(role) for role in ("up", "down", "mid"))
    if up is None or down is None:
        raise ValueError(_missing(up, down))
    _check_shapes(up, down, mid)
    rank = int(down.shape[0])
    return LowRank(up, down, mid, group.keys, group.alpha, _scale(group, rank))


def _missing(up: Tensor | None, down: Tensor | None) -> str:
    if up is None and down is None:
        return "a core without its factors"
    return "a down factor without its up factor" if up is None else "an up factor without its down factor"


def _scale(group: Group, rank: int) -> float:
    if group.alpha is None:
        return 1.0
    if rank == 0:
        return 0.0
    return group.alpha / (math.sqrt(rank) if group.rank_stabilised else rank)


def _check_shapes(up: Tensor, down: Tensor, mid: Tensor | None) -> None:
    named = {"up": up, "mid": mid, "down": down}
    shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in named.items() if tensor is not None)
    if up.ndim < 2 or down.ndim < 2 or math.prod(up.shape[2:]) != 1:
        raise ValueError(f"the factors are neither matrices nor kernels: {shapes}")
    inner = (down.shape[0],) * 2 if mid is None else mid.shape[:2]  # (rank of up, rank of down)
    if inner != (up.shape[1], down.shape[0]):
        raise ValueError(f"the ranks of the factors differ: {shapes}")
    if mid is not None and math.prod(down.shape[2:]) != 1:
        raise ValueError(f"both the core and the down factor have a kernel: {shapes}")


ALGORITHM = Algorithm("lora", dict(_endings()), build)
