"""Weights of half a byte each: nf4 and fp4, as bitsandbytes stores them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lora_runtime.errors import LoraFileError
from lora_runtime.tensors import DTYPES
from lora_runtime.workbench.codes_base import Codes, read_json

__all__ = ["InBlocks"]


@dataclass(frozen=True)
class InBlocks(Codes):
    """bitsandbytes' nf4 and fp4: two codes in a byte, and of each block what the map's ±1 stands for.

    These scales may be codes themselves (`nested`): of 8 bits, on a map and on scales of their own.
    """

    state_key: str

    @property
    def kind(self) -> str:
        """What people call it."""
        return f"{self.state_key.rpartition('__')[2]} of bitsandbytes"

    @property
    def beside(self) -> tuple[str, ...]:
        """All that is called as a part of the weight."""
        return tuple(key for key in self.header.tensors if key.startswith(f"{self.key}."))

    @property
    def shape(self) -> torch.Size:
        """The shape that is noted."""
        shape = self._noted("shape")
        if not (isinstance(shape, list) and all(isinstance(size, int) for size in shape)):
            raise LoraFileError(f"{self.path}: {self.state_key} tells no shape")
        return torch.Size(shape)

    def changed(self, before: Tensor, after: Tensor) -> int:
        """Return how many of the codes differ, of which each byte has two."""
        return int((self._unpacked(before) != self._unpacked(after)).sum())

    def decoded(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return map[code] · absmax."""
        codes, table = self._unpacked(self.of(tensors, self.key)), self.read(f"{self.key}.quant_map").float()
        scale = self._absmax(tensors).repeat_interleave(self._size("blocksize"))
        return (table[codes] * scale[: codes.numel()]).reshape(self.shape)

    def coded(self, weight: Tensor) -> Mapping[str, Tensor]:
        """Return codes on the blocks' scales, those that are too small made larger."""
        flat, block = weight.flatten(), self._size("blocksize")
        before, scale = self._unpacked(self.read(self.key)), self._absmax({})
        padded = torch.nn.functional.pad(flat.abs(), (0, scale.numel() * block - flat.numel()))
        wanted = torch.maximum(scale, padded.view(-1, block).amax(1))
        tensors, scale = self._stored_absmax(wanted, scale)
        table = self.read(f"{self.key}.quant_map").float()
        each = scale.repeat_interleave(block)[: flat.numel()].clamp(min=torch.finfo(torch.float32).tiny)
        codes = _nearest(flat / each, table)
        codes = torch.where(table[codes] == table[before], before, codes)  # fp4 has two zeros
        packed = _packed(codes).reshape(self.header.tensors[self.key].shape)
        return {self.key: packed, **tensors}

    @property
    def _nested(self) -> bool:
        return f"{self.key}.nested_absmax" in self.header.tensors

    def _absmax(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the blocks' scales, float32."""
        stored = self.of(tensors, f"{self.key}.absmax").flatten()
        if not self._nested:
            return stored.float()
        return self._unnested(stored.long(), self.of(tensors, f"{self.key}.nested_absmax").flatten().float())

    def _unnested(self, codes: Tensor, most: Tensor) -> Tensor:
        table = self.read(f"{self.key}.nested_quant_map").float()
        return table[codes] * most.repeat_interleave(self._size("nested_blocksize"))[: codes.numel()] + self._offset

    def _stored_absmax(self, wanted: Tensor, before: Tensor) -> tuple[Mapping[str, Tensor], Tensor]:
        """Return the tensors for blocks' scales, as near as they can be stored, and the scales that these give."""
        key, info = f"{self.key}.absmax", self.header.tensors[f"{self.key}.absmax"]
        if not self._nested:
            stored = wanted.to(DTYPES[info.dtype])
            return {key: stored.reshape(info.shape)}, stored.float()
        table = self.read(f"{self.key}.nested_quant_map").float()
        codes, most = self.read(key).flatten().long(), self.read(f"{self.key}.nested_absmax").flatten().float()
        size = self._size("nested_blocksize")
        over = (wanted - self._offset).abs()
        greatest = torch.nn.functional.pad(over, (0, most.numel() * size - over.numel())).view(-1, size).amax(1)
        grown = greatest > most
        most = torch.where(grown, greatest, most)
        each = most.repeat_interleave(size)[: over.numel()].clamp(min=torch.finfo(torch.float32).tiny)
        anew = (wanted != before) | grown.repeat_interleave(size)[: over.numel()]
        codes = torch.where(anew, _nearest((wanted - self._offset) / each, table), codes)
        nested = self.header.tensors[f"{self.key}.nested_absmax"]
        tensors = {
            key: codes.to(torch.uint8).reshape(info.shape),
            f"{self.key}.nested_absmax": most.to(DTYPES[nested.dtype]).reshape(nested.shape),
        }
        return tensors, self._unnested(codes, most)

    def _unpacked(self, packed: Tensor) -> Tensor:
        """Return codes, int64: the first of two in the upper half of a byte."""
        halves = packed.flatten().view(torch.uint8).long()
        return torch.stack([halves >> 4, halves & 15], 1).flatten()[: self.shape.numel()]

    @property
    def _offset(self) -> float:
        offset = self._noted("nested_offset")
        if not isinstance(offset, (int, float)):
            raise LoraFileError(f"{self.path}: {self.state_key} tells no nested_offset")
        return float(offset)

    def _size(self, name: str) -> int:
        size = self._noted(name)
        if not (isinstance(size, int) and size > 0):
            raise LoraFileError(f"{self.path}: {self.state_key} tells no {name}")
        return size

    def _noted(self, name: str) -> object:
        return read_json(self.read(self.state_key)).get(name)


def _packed(codes: Tensor) -> Tensor:
    pairs = torch.nn.functional.pad(codes, (0, codes.numel() % 2)).view(-1, 2)
    return (pairs[:, 0] << 4 | pairs[:, 1]).to(torch.uint8)


def _nearest(values: Tensor, table: Tensor) -> Tensor:
    """Return the places of the numbers in a table that are nearest."""
    ordered, places = table.sort()
    middles = (ordered[1:] + ordered[:-1]) / 2
    return places[torch.searchsorted(middles, values.contiguous())]
