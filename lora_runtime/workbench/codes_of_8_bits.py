"""Weights of a byte each: fp8 with and without a scale, and the int8 of bitsandbytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lora_runtime.errors import StrengthError
from lora_runtime.tensors import DTYPES
from lora_runtime.workbench.codes_base import Codes

__all__ = ["InRows", "Plain", "Scaled"]

_INT8 = 127
_BLOCK = 128


class Plain(Codes):
    """Values of 8 bits, without a scale."""

    @property
    def kind(self) -> str:
        """The dtype."""
        return str(DTYPES[self.header.tensors[self.key].dtype]).removeprefix("torch.")

    def decoded(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the codes' own values."""
        return self.of(tensors, self.key).float()

    def coded(self, weight: Tensor) -> Mapping[str, Tensor]:
        """Return the nearest values; StrengthError where one is beyond the dtype, since there is no scale to grow."""
        dtype = DTYPES[self.header.tensors[self.key].dtype]
        most = float(weight.abs().max())
        if not most <= torch.finfo(dtype).max:
            raise StrengthError(
                f"{self.path}: {self.key} would be {most:.3g}, and {self.kind} without a scale "
                f"holds {torch.finfo(dtype).max:g}: use a lower strength"
            )
        return {self.key: self._rounded(weight)}

    def _rounded(self, values: Tensor) -> Tensor:
        """Return the nearest codes; of the two zeros the one that is there."""
        before = self.read(self.key)
        codes = values.to(before.dtype)
        return torch.where(codes.float() == before.float(), before.view(torch.uint8), codes.view(torch.uint8)).view(
            before.dtype
        )


@dataclass(frozen=True)
class Scaled(Plain):
    """Values of 8 bits times a scale: one of all, or one of each row, each column or each block."""

    scale: str

    @property
    def kind(self) -> str:
        """The dtype, and that there is a scale."""
        return f"{super().kind} with a scale"

    @property
    def beside(self) -> tuple[str, ...]:
        """The scale, with whatever else the layer has beside its codes."""
        module = self.key.rpartition(".")[0]
        others = (f"{module}.comfy_quant", f"{module}.input_scale", f"{module}.scale_input")
        return (self.scale, *(key for key in others if key in self.header.tensors))

    def decoded(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return codes · scale."""
        return self.of(tensors, self.key).float() * self._spread(self.of(tensors, self.scale).float())

    def coded(self, weight: Tensor) -> Mapping[str, Tensor]:
        """Return codes on the scales that are there, those that are too small made larger."""
        dtype = DTYPES[self.header.tensors[self.key].dtype]
        stored = self.read(self.scale)
        scale = stored.float()
        most = self._most(weight.abs(), scale.shape) / torch.finfo(dtype).max
        grown = torch.maximum(most, scale).to(stored.dtype)
        steps = self._spread(grown.float()).clamp(min=torch.finfo(torch.float32).tiny)
        return {self.key: self._rounded(weight / steps), self.scale: grown}

    @property
    def is_known(self) -> bool:
        """Whether the shapes tell which elements share a scale."""
        return None not in self._parts()

    def _parts(self) -> list[tuple[int, int] | None]:
        """Return, for each dimension, how many scales there are and how many elements share one; None where unknown.

        A file does not tell the size of its blocks: they are of 128 where their number is that of blocks of 128, as
        DeepSeek's and Qwen's are, and else all of one size.
        """
        shape = torch.Size(self.header.tensors[self.scale].shape)
        counts = [*shape, *([1] * (len(self.shape) - len(shape)))] if shape.numel() > 1 else [1] * len(self.shape)
        if len(counts) != len(self.shape):
            return [None]
        found: list[tuple[int, int] | None] = []
        for count, size in zip(counts, self.shape, strict=True):
            if count == -(-size // _BLOCK) and count > 1:
                found.append((count, _BLOCK))
            else:
                found.append((count, size // count) if count and size % count == 0 else None)
        return found

    def _sizes(self) -> list[tuple[int, int]]:
        return [part for part in self._parts() if part is not None]

    def _spread(self, scale: Tensor) -> Tensor:
        """Return the scale of each element."""
        sizes = self._sizes()
        scale = scale.reshape([count for count, _ in sizes])
        for dim, ((_, each), size) in enumerate(zip(sizes, self.shape, strict=True)):
            scale = scale.repeat_interleave(each, dim).narrow(dim, 0, size)
        return scale

    def _most(self, weight: Tensor, shape: torch.Size) -> Tensor:
        """Return the greatest of the elements that share a scale, in the scales' shape."""
        for dim, (count, each) in enumerate(self._sizes()):
            missing = count * each - weight.shape[dim]
            if missing:
                sizes = [*weight.shape]
                sizes[dim] = missing
                weight = torch.cat([weight, weight.new_zeros(sizes)], dim)
            weight = weight.reshape(*weight.shape[:dim], count, each, *weight.shape[dim + 1 :]).amax(dim + 1)
        return weight.reshape(shape)


@dataclass(frozen=True)
class InRows(Codes):
    """bitsandbytes' int8: codes from −127 to 127, and of each row what 127 stands for."""

    scale: str

    @property
    def kind(self) -> str:
        """What people call it."""
        return "int8 of bitsandbytes"

    @property
    def beside(self) -> tuple[str, ...]:
        """The rows' scales, and the mark of the order of the codes."""
        mark = f"{self.key}_format"
        return (self.scale, mark) if mark in self.header.tensors else (self.scale,)

    def decoded(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return codes · SCB / 127."""
        return self.of(tensors, self.key).float() * (self.of(tensors, self.scale).float().view(-1, 1) / _INT8)

    def coded(self, weight: Tensor) -> Mapping[str, Tensor]:
        """Return codes on the rows' scales, those that are too small made larger."""
        stored = self.read(self.scale)
        scale = torch.maximum(stored.float(), weight.abs().amax(1).reshape(stored.shape))
        steps = scale.view(-1, 1).clamp(min=torch.finfo(torch.float32).tiny) / _INT8
        return {self.key: (weight / steps).round().to(torch.int8), self.scale: scale.to(stored.dtype)}
