"""LoRA and LoCon: delta = alpha/rank · up @ down, for linear layers and convolutions of any dimension.

LoRA: Hu et al. 2021, arXiv:2106.09685. LoCon, with or without the Tucker core `lora_mid`: LyCORIS, arXiv:2309.14859.
Beside its factors a LoRA may have a bias (PEFT's `lora_bias`), and a sparse remainder of what the rank could not hold
(LyCORIS's extraction): each is an adapter of its own, with the scale of the factors. A `reshape_weight` says that the
factors are for a weight that the trainer made larger (control LoRAs of Flux).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lora_runtime.adapters.base import (
    Adapter,
    Algorithm,
    Dense,
    Factors,
    Group,
    misfit_of,
    no_autocast,
    sum_dtype,
)
from lora_runtime.adapters.difference import Difference
from lora_runtime.adapters.experts import experts
from lora_runtime.key_endings import ENDINGS

__all__ = ["ALGORITHM", "BiasOfLowRank", "LowRank", "Remainder", "build", "build_all"]

# XLabs: the number of the stream is a part of the module's name, and a block of one stream has none.
_XLABS = ("_lora1", "_lora2", ".qkv_lora", ".proj_lora")
_TAILS = {f"{name}.{side}.weight": name for name in _XLABS for side in ("up", "down")}
_PACKED = ".lora_up"  # Nunchaku's ending, (out, rank) and (in, rank), and somebody's plain factors
_FACTORS = {"up", "down", "mid", "reshape_weight"}
_REMAINDER = ("bias_indices", "bias_values", "bias_size")  # a bias in name only: it has the shape of the weight


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

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """The shape of the weight that it was trained on."""
        return self.made_for

    def misfit(self, shape: torch.Size) -> str | None:
        """Return None where the factors give a weight of that shape."""
        return misfit_of(self.made_for, shape, least=2)

    def factors(self) -> Factors:
        """Return up (out, rank) and down (rank, in·k…): views in the file's dtype, with a core `_fold`'s."""
        down = self.down if self.mid is None else _fold(self.mid, self.down)
        return Factors(self.up.flatten(1), down.flatten(1), self.scale)

    def delta(self, weight: Tensor) -> Tensor:
        """Return scale · up @ down in float32 (float64 for float64), in the shape and on the device of `weight`."""
        factors, dtype = self.factors(), sum_dtype(weight)
        # Inside autocast a float32 product would be rounded to bfloat16.
        with no_autocast(weight.device):
            up = factors.up.to(weight.device, dtype) * factors.scale
            return (up @ factors.down.to(weight.device, dtype)).reshape(weight.shape)


class Enlarging(LowRank):
    """Factors for a weight that has to be enlarged first, by zeros: (out, in) is then (out, more inputs)."""

    def misfit(self, shape: torch.Size) -> str | None:
        """Return None where the weight is as large already."""
        if super().misfit(shape) is None:
            return None
        return f"made for a weight enlarged to {self.made_for}; a live weight, here {tuple(shape)}, keeps its shape"


class BiasOfLowRank(Difference):
    """The bias of the factor on the output side: Δ of the module's bias, with the scale of the factors."""

    algorithm: ClassVar[str] = "lora"


@dataclass(frozen=True, eq=False)
class Remainder(Dense):
    """A sparse difference of the weight, as coordinates and values."""

    algorithm: ClassVar[str] = "lora"

    indices: Tensor  # (2, n) integers: rows and columns of the flattened weight
    values: Tensor  # (n,); those of the same place add up
    size: tuple[int, int]  # (out, in·k…)
    keys: tuple[str, ...]
    scale: float

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """The shape of the weight that it was trained on."""
        return self.size

    def misfit(self, shape: torch.Size) -> str | None:
        """Return None where the flattened weight has that size."""
        return misfit_of(self.size, shape, least=2)

    def change(self, weight: Tensor, cast: Callable[[Tensor], Tensor]) -> Tensor:
        """Return scale · values at their places."""
        values = cast(self.values) * self.scale
        row, column = self.indices.to(weight.device)
        flat = values.new_zeros(math.prod(self.size))
        return flat.index_add_(0, row * self.size[1] + column, values)


def _fold(mid: Tensor, down: Tensor) -> Tensor:
    """Return the float32 (float64) factor (m, in, k…) that core (m, n, k…) and down (n, in, 1…) make together."""
    dtype = sum_dtype(mid)
    with no_autocast(mid.device):
        return torch.einsum("mn...,nj->mj...", mid.to(dtype), down.to(dtype).reshape(down.shape[:2]))


def build_all(group: Group) -> list[Adapter]:
    """Return the adapter of one module, and those of its bias and its remainder where there are any."""
    if group.of_experts:
        up, down = group.need("up", "down")
        return [experts(group, up, down, group.keys)]
    if group.tensors.keys() <= _FACTORS:
        return [build(group)]
    extras = [role for role in group.tensors if role not in _FACTORS]
    apart = {group.key_of[role] for role in extras}
    low_rank = build(group, tuple(key for key in group.keys if key not in apart))
    adapters: list[Adapter] = [low_rank]
    if "bias" in group.tensors:
        bias = group.tensors["bias"]
        if bias.shape != low_rank.up.shape[:1]:
            raise ValueError(f"the bias is not as long as the up factor: {group.shapes()}")
        adapters.append(BiasOfLowRank(bias, (group.key_of["bias"],), "bias", low_rank.scale))
    if extras != ["bias"]:
        adapters.append(_remainder(group, low_rank.scale))
    return adapters


def build(group: Group, keys: tuple[str, ...] | None = None) -> LowRank:
    """Return the adapter of the factors alone; ValueError says what is missing or contradictory."""
    up, down, mid, enlarged = (group.tensors.get(role) for role in ("up", "down", "mid", "reshape_weight"))
    if up is None or down is None:
        raise ValueError(_missing(group))
    packed = group.key_of.get("up", "").endswith(_PACKED)
    if packed and up.shape[1:] == down.shape[1:] and up.shape[1:] != down.shape[:1]:
        raise ValueError(
            "Nunchaku's packed LoRA cannot be used: its factors are padded and in the order of its kernels; use the "
            "file that it was converted from"
        )
    _check_shapes(up, down, mid)
    scale = group.scale_for(int(down.shape[0]))
    kind = LowRank if enlarged is None else Enlarging
    made = kind(up, down, mid, group.keys if keys is None else keys, group.alpha, scale)
    if enlarged is not None and not enlarged.is_meta and tuple(enlarged.flatten().tolist()) != made.made_for:
        raise ValueError(f"the weight is to be enlarged to {enlarged.tolist()}, the factors are for {made.made_for}")
    return made


def _missing(group: Group) -> str:
    if "up" in group.tensors:
        return "an up factor without its down factor"
    if "down" in group.tensors:
        return "a down factor without its up factor"
    what = "a core" if "mid" in group.tensors else "a bias" if "bias" in group.tensors else "a sparse remainder"
    return f"{what} without its factors"


def _check_shapes(up: Tensor, down: Tensor, mid: Tensor | None) -> None:
    up_shape, down_shape = up.shape, down.shape
    if len(up_shape) < 2 or len(down_shape) < 2 or math.prod(up_shape[2:]) != 1:
        raise ValueError(f"the factors are neither matrices nor kernels: {_shapes(up, down, mid)}")
    inner = (down_shape[0],) * 2 if mid is None else mid.shape[:2]  # (rank of up, rank of down)
    if inner != (up_shape[1], down_shape[0]):
        differ = f"the ranks of the factors differ: {_shapes(up, down, mid)}"
        groups, rest = divmod(down_shape[0], max(up_shape[1], 1))
        if mid is None and len(up_shape) > 2 and groups > 1 and rest == 0 < up_shape[1]:
            differ += (
                f"; PEFT's do for a convolution of {groups} groups, where they look at all inputs, and so are no "
                "change of a weight that looks at those of its group"
            )
        raise ValueError(differ)
    if mid is not None and math.prod(down_shape[2:]) != 1:
        raise ValueError(f"both the core and the down factor have a kernel: {_shapes(up, down, mid)}")


def _shapes(up: Tensor, down: Tensor, mid: Tensor | None) -> str:
    named = {"up": up, "mid": mid, "down": down}
    return ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in named.items() if tensor is not None)


def _remainder(group: Group, scale: float) -> Remainder:
    indices, values, size = (_unsigned(tensor) for tensor in group.need(*_REMAINDER))
    count = values.numel()
    if size.shape != (2,) or values.ndim != 1 or indices.shape != (2, count):
        raise ValueError(f"the sparse remainder is not a matrix: {group.shapes()}")
    if indices.is_floating_point() or size.is_floating_point():
        raise ValueError("the places of the sparse remainder are no integers")
    rows, columns = (int(extent) for extent in size)
    if count and not (int(indices.min()) >= 0 and int(indices[0].max()) < rows and int(indices[1].max()) < columns):
        raise ValueError(f"the sparse remainder has a place outside of its own size ({rows}, {columns})")
    keys = tuple(group.key_of[role] for role in _REMAINDER)
    return Remainder(indices, values, (rows, columns), keys, scale)


def _unsigned(tensor: Tensor) -> Tensor:
    """Return integers as int64. They are written as int16, in which a place beyond 32767 became negative."""
    if tensor.is_floating_point():
        return tensor
    return tensor.long() & 0xFFFF if tensor.dtype == torch.int16 else tensor.long()


ALGORITHM = Algorithm(
    "lora",
    ENDINGS["lora"],
    build_all,
    shared=("alpha", "scale", "reshape_weight"),
    configured=True,
    tails=_TAILS,
)
