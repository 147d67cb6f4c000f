"""What bake does with weights that are stored as codes: their new tensors, and what rounding anew has done."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lora_runtime.hosted import HostPatch
from lora_runtime.workbench.codes import Codes

__all__ = ["Coding", "Requantised"]


@dataclass
class Requantised:
    """So many weights of each kind were rounded to codes anew, and so many of their `codes` changed.

    `meant` is ‖ΣΔ‖², the change that was asked for, and `lost` ‖written − meant‖².
    """

    kinds: dict[str, int] = field(default_factory=dict)
    codes: int = 0
    changed: int = 0
    meant: float = 0.0
    lost: float = 0.0

    @property
    def error(self) -> float:
        """What rounding anew has cost, by the norm of the change: from 1 on nothing of it is to be seen."""
        return math.sqrt(self.lost / self.meant) if self.meant > 0 else 0.0

    def add(self, codes: Codes, before: Tensor, meant: Tensor, tensors: Mapping[str, Tensor]) -> None:
        """Count a weight: its values before, those that are meant, and the tensors that are written."""
        self.kinds[codes.kind] = self.kinds.get(codes.kind, 0) + 1
        self.codes += codes.shape.numel()
        self.changed += codes.changed(codes.read(codes.key), tensors[codes.key])
        self.meant += _energy(meant - before)
        self.lost += _energy(codes.decoded(tensors) - meant)


class Coding:
    """The tensors of changed weights, in whatever order they are asked for; those of one weight are in memory."""

    def __init__(self, codes: Mapping[str, Codes], patches: Mapping[str, HostPatch]) -> None:
        self._codes, self._patches = codes, patches
        self._owners = {key: own for own, each in codes.items() for key in (own, *each.beside)}
        self._last: tuple[str, Mapping[str, Tensor]] = ("", {})
        self.done = Requantised()

    def tensor(self, key: str) -> Tensor | None:
        """Return what is written under a key, None where it stays as it is or is nothing of these weights."""
        owner = self._owners.get(key)
        if owner is None:
            return None
        if self._last[0] != owner or key == owner:
            codes = self._codes[owner]
            before = codes.values()
            meant = self._patches[owner].merged(before)
            self._last = owner, codes.coded(meant)
            if key == owner:
                self.done.add(codes, before, meant, self._last[1])
        return self._last[1].get(key)


def _energy(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64)) ** 2
