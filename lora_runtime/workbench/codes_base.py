"""What every way to store a weight as codes can tell and do."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lora_runtime.header import Header
from lora_runtime.tensors import read_one

__all__ = ["Codes", "read_json"]


@dataclass(frozen=True)
class Codes(ABC):
    """A weight that is stored as codes: its key, and the keys of what lies beside it."""

    header: Header
    key: str

    @property
    def path(self) -> Path:
        """The file."""
        return self.header.path

    @property
    @abstractmethod
    def kind(self) -> str:
        """What people call this way to store weights."""

    @property
    def beside(self) -> tuple[str, ...]:
        """The keys of the tensors that belong to the codes."""
        return ()

    @property
    def shape(self) -> torch.Size:
        """The shape of the weight."""
        return torch.Size(self.header.tensors[self.key].shape)

    def changed(self, before: Tensor, after: Tensor) -> int:
        """Return how many codes differ between two tensors of them."""
        return int((before.view(torch.uint8) != after.view(torch.uint8)).sum())

    def read(self, key: str) -> Tensor:
        """Return a tensor of the file."""
        return read_one(self.path, self.header.tensors[key])

    def values(self) -> Tensor:
        """Return the weight, float32."""
        return self.decoded({})

    @abstractmethod
    def decoded(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return what such tensors stand for, float32; those that lack are the file's."""

    def of(self, tensors: Mapping[str, Tensor], key: str) -> Tensor:
        """Return one of the tensors, or the file's."""
        return tensors[key] if key in tensors else self.read(key)

    @abstractmethod
    def coded(self, weight: Tensor) -> Mapping[str, Tensor]:
        """Return the tensors that stand for another weight, float32, by key; those that are as they were may lack."""


def read_json(text: Tensor) -> dict[str, object]:
    """Return the JSON object in a tensor of bytes, empty where it is none."""
    try:
        found = json.loads(bytes(text.tolist()))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
