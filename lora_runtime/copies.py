"""Copies of originals that are written in place: in host memory, which a device can copy to while others compute."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor

from lora_runtime.forecast import Step, shares_host_memory, size_of
from lora_runtime.memory import pinned, waiter
from lora_runtime.memory_policy import Held
from lora_runtime.uploads import Upload, bytes_of
from lora_runtime.weights import Weight, plain_data

__all__ = ["Copies", "held_by"]

# A host's allocator rounds pinned memory up to a power of two: slabs of that size waste none of it.
_SLAB_BYTES = 256 << 20
_GRAIN = 64  # bytes; each copy begins at a multiple


class Copies:
    """Makes the copies of one apply. The last step is `wait`: before it the host must not read a copy."""

    def __init__(self, weights: Iterable[tuple[Weight, Step]]) -> None:
        """`weights`: those that will be copied, so that their slabs can be had in as few pieces as possible."""
        self._left = sum(_padded(weight) for weight, step in weights if _in_host(weight, step))
        self._slab: Tensor | None = None
        self._used = 0
        self._waiting: set[torch.device] = set()

    def make(self, weight: Weight, step: Step) -> Tensor:
        """Return a copy of the parameter's values where a step keeps them, in the weight's buffer if that fits."""
        value = plain_data(weight.parameter)
        where = torch.device("cpu") if step == "host" else value.device
        buffer = weight.buffer
        if buffer is None or buffer.device != where or buffer.dtype != value.dtype or buffer.shape != value.shape:
            buffer = self._memory(weight, value) if _in_host(weight, step) else torch.empty_like(value, device=where)
        apart = where != value.device and waiter(value.device) is not None
        if apart:
            self._waiting.add(value.device)
        return buffer.copy_(value, non_blocking=apart)

    def _memory(self, weight: Weight, value: Tensor) -> Tensor:
        """Return pinned memory for one copy, laid out as the value is."""
        size = _padded(weight)
        if self._slab is None or self._used + size > self._slab.numel():
            self._slab, self._used = pinned(max(size, min(self._left, _SLAB_BYTES))), 0
        piece = self._slab[self._used : self._used + size_of(value)].view(value.dtype)
        self._used += size
        self._left -= size
        dense = torch.empty_like(value, device="meta")  # a copy has no gaps between its values
        return piece.as_strided(dense.shape, dense.stride())

    def wait(self) -> None:
        """Return when all copies are there."""
        while self._waiting:
            device = self._waiting.pop()
            wait = waiter(device)
            assert wait is not None
            wait(device)


def _in_host(weight: Weight, step: Step) -> bool:
    """Return whether the copy of a weight is in host memory and its values are not."""
    return step == "host" and not shares_host_memory(weight.parameter.device)


def _padded(weight: Weight) -> int:
    return -(-size_of(weight.parameter) // _GRAIN) * _GRAIN


def held_by(weights: Iterable[Weight]) -> dict[torch.device, Held]:
    """Return the bytes that are kept for these weights by now, by the device that each is on."""
    on_device: Counter[torch.device] = Counter()
    in_host: Counter[torch.device] = Counter()
    uploads: list[Upload] = []
    for weight in weights:
        if weight.uploads:
            uploads += weight.uploads.values()
        original, buffer = weight.original, weight.buffer
        if original is None and buffer is None:
            continue
        device, size = weight.parameter.device, size_of(weight.parameter)
        if shares_host_memory(device) or (original is not None and weight.step == "device"):
            on_device[device] += size
        else:
            kept = original if original is not None else buffer
            where = in_host if kept is not None and kept.device != device else on_device
            where[device] += size
    factors = bytes_of(uploads)
    devices = {*on_device, *in_host, *factors}
    return {device: Held(on_device[device], in_host[device], factors[device]) for device in devices}
