"""Tensors that go where a module computes."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Numbers", "computing"]


def computing(weight: Tensor) -> tuple[torch.device, torch.dtype | None]:
    """Return where, and in which dtype, a layer with this weight computes; None where the weight does not tell.

    One that is quantised, stored in 8 bits or kept elsewhere between calls does not: the first call tells.
    """
    if weight.is_meta:
        return torch.device("cpu"), None
    if not weight.is_floating_point() or weight.element_size() == 1:
        return weight.device, None
    return weight.device, weight.dtype


class Numbers:
    """Tensors in the dtype of a module's outputs, and on their device.

    They are kept as they came: a call in half precision must not cost the next one its digits.
    """

    def __init__(self, tensors: tuple[Tensor, ...], dtype: torch.dtype | None) -> None:
        """Keep the tensors in that dtype; None: in that of the first call."""
        self._whole = tensors if dtype is None else tuple(_cast(tensor, tensor.device, dtype) for tensor in tensors)
        self._now = self._whole
        self._settled = dtype is not None

    @property
    def nbytes(self) -> int:
        """The bytes of the tensors as they came."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self._whole)

    def like(self, output: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors as a call with that output needs them."""
        device, dtype = output.device, output.dtype
        if any(tensor.device != device or tensor.dtype != dtype for tensor in self._now):
            # A tensor made under inference mode stays an inference tensor for life.
            with torch.inference_mode(False), torch.no_grad():
                self._now = tuple(_cast(tensor, device, dtype) for tensor in self._whole)
            if not self._settled:
                self._whole, self._settled = self._now, True
        return self._now


def _cast(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    return tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)
