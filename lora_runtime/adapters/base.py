"""What an adapter is: a change Δ(W₀) of one weight, whichever algorithm it was trained with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

__all__ = ["Adapter", "Algorithm", "Factors", "Group", "no_autocast"]


@dataclass(frozen=True, eq=False)
class Factors:
    """A delta of low rank: delta = scale · up @ down, flattened to two dimensions."""

    up: Tensor  # (out, rank)
    down: Tensor  # (rank, in·k…)
    scale: float


class Adapter(ABC):
    """A change of one weight, at strength 1."""

    algorithm: ClassVar[str]
    base_dependent: ClassVar[bool] = False  # whether Δ depends on W₀

    keys: tuple[str, ...]  # the file's keys that it was made from
    rank: int
    alpha: float | None
    scale: float  # alpha / rank, or 1 where there is no alpha

    @abstractmethod
    def misfit(self, shape: torch.Size) -> str | None:
        """Return why this adapter cannot act on a weight of that shape, or None when it can."""

    @abstractmethod
    def factors(self) -> Factors | None:
        """Return the low-rank factors, or None when the delta is not of low rank."""

    @abstractmethod
    def delta(self, weight: Tensor) -> Tensor:
        """Return Δ(weight): float32, the weight's shape and device. `weight` is the original one."""


@dataclass(frozen=True, eq=False)
class Group:
    """The tensors of one algorithm on one module, as an algorithm's `build` gets them."""

    stem: str
    tensors: Mapping[str, Tensor]  # by role, such as "up" and "down"
    keys: tuple[str, ...]
    alpha: float | None = None
    rank_stabilised: bool = False  # rsLoRA: scale = alpha / √rank


@dataclass(frozen=True)
class Algorithm:
    """One family of adapters: the key endings that it owns, and how an adapter is built from them."""

    name: str
    endings: Mapping[str, str]  # ".lora_up.weight" → "kohya up": spelling and role
    build: Callable[[Group], Adapter]  # raises ValueError with the reason when the tensors do not fit together


def no_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which products on `device` are not rounded to half precision, whatever the caller's is."""
    try:
        return torch.autocast(device.type, enabled=False)
    except RuntimeError:  # a device without autocast: MPS before torch 2.5
        return nullcontext()
