"""Tensors of files on a device: those that a file has for one weight go up in one copy, and may stay for the next sum.

They have the file's own dtype, so that a sum has the same bits wherever its factors wait. What stays is a cache and no
more: whoever drops it makes the next sum send it again.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from lora_runtime.adapters import Adapter
from lora_runtime.footprint import rounded
from lora_runtime.memory import pinned, waiter

__all__ = ["Block", "Sent", "Upload", "Uploads", "bytes_of", "packed_bytes"]

_GRAIN = 64  # bytes; each tensor begins at a multiple, as memory of its own would
_STAGE_BYTES = 16 << 20  # of pinned memory, which is filled again and again: a file may have gigabytes
# What every device computes with. The rest goes up as what it would be cast to: eight bits, and double precision.
_SENT_AS_THEY_ARE = {torch.float32, torch.float16, torch.bfloat16}


class Block:
    """One copy on a device: what stands there for tensors of a file. It lasts as long as somebody has it."""

    __slots__ = ("__weakref__", "nbytes", "views")

    def __init__(self, nbytes: int, views: Mapping[int, Tensor]) -> None:
        """`nbytes`: what the device gives for it; `views` by the id of each tensor that they stand for."""
        self.nbytes = nbytes
        self.views = views


class Upload(NamedTuple):
    """An adapter with its tensors on a device, for sums in a dtype, and the copies that these lie in."""

    adapter: Adapter
    device: torch.device
    dtype: torch.dtype
    blocks: tuple[Block, ...]

    def fits(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Return whether it is for sums in that dtype on that device."""
        return self.device == device and self.dtype == dtype


def bytes_of(uploads: Iterable[Upload]) -> Counter[torch.device]:
    """Return the bytes of all copies that uploads lie in, each once, by device."""
    blocks = {id(block): (upload.device, block.nbytes) for upload in uploads for block in upload.blocks}
    found: Counter[torch.device] = Counter()
    for device, nbytes in blocks.values():
        found[device] += nbytes
    return found


def packed_bytes(tensors: Iterable[Tensor], dtype: torch.dtype) -> int:
    """Return the bytes of one copy of these tensors, for sums in a dtype."""
    return sum(_padded(tensor, dtype) for tensor in tensors)


def _sent_as(tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    if tensor.dtype in _SENT_AS_THEY_ARE or not tensor.is_floating_point():
        return tensor.dtype
    return dtype


def _size(tensor: Tensor, dtype: torch.dtype) -> int:
    return tensor.numel() * torch.empty(0, dtype=_sent_as(tensor, dtype)).element_size()


def _padded(tensor: Tensor, dtype: torch.dtype) -> int:
    return -(-_size(tensor, dtype) // _GRAIN) * _GRAIN


def _pieces(memory: Tensor, tensors: Sequence[Tensor], dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield each tensor with its place in the bytes of a copy, laid out as the tensor is."""
    start = 0
    for tensor in tensors:
        own = memory[start : start + _size(tensor, dtype)].view(_sent_as(tensor, dtype))
        dense = torch.empty_like(tensor, device="meta")  # a copy has no gaps between its values
        yield tensor, own.as_strided(dense.shape, dense.stride())
        start += _padded(tensor, dtype)


class Sent:
    """What is on devices by now, by the tensors that it stands for; it keeps neither.

    So a tensor that several weights need (of a fused layer, or one that all modules of a file share) goes up once.
    """

    def __init__(self) -> None:
        """Start with nothing."""
        self._known: dict[tuple[torch.device, torch.dtype], WeakIdKeyDictionary] = {}

    def find(self, tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Block | None:
        """Return the copy that has a tensor, if there is one."""
        known = self._known.get((device, dtype))
        reference: weakref.ref[Block] | None = None if known is None else known.get(tensor)  # type: ignore[no-untyped-call]
        return None if reference is None else reference()

    def note(self, tensor: Tensor, device: torch.device, dtype: torch.dtype, block: Block) -> None:
        """Remember which copy has a tensor."""
        known = self._known.setdefault((device, dtype), WeakIdKeyDictionary())
        known[tensor] = weakref.ref(block)

    def missing(self, adapters: Iterable[Adapter], device: torch.device, dtype: torch.dtype) -> list[Tensor]:
        """Return the tensors of adapters in host memory that no copy has, each once."""
        own = {id(tensor): tensor for adapter in adapters for tensor in adapter.tensors() if tensor.is_cpu}
        return [tensor for tensor in own.values() if self.find(tensor, device, dtype) is None]


class Uploads:
    """Sends up what the sums of one apply need. The last step is `wait`."""

    def __init__(self, sent: Sent, rooms: Mapping[torch.device, int | None]) -> None:
        """`rooms`: the bytes that may stay beside those that do already, by device; None: any."""
        self._sent = sent
        self._rooms = dict(rooms)
        self._stages: dict[torch.device, _Stage] = {}

    def send(self, adapters: Sequence[Adapter], device: torch.device, dtype: torch.dtype) -> tuple[list[Upload], bool]:
        """Return one file's adapters for one weight, on a device, and whether there is room for them to stay.

        Their tensors go up in one copy, those left out that are there already.
        """
        blocks: dict[int, Block] = {}
        missing = self._sent.missing(adapters, device, dtype)
        stays = True
        if missing:
            block = self._copy(missing, device, dtype)
            blocks = {id(tensor): block for tensor in missing}
            room = self._rooms[device]
            stays = room is None or block.nbytes <= room
            if stays:
                for tensor in missing:
                    self._sent.note(tensor, device, dtype, block)
                if room is not None:
                    self._rooms[device] = room - block.nbytes
        made = []
        for adapter in adapters:
            own: dict[int, Block] = {}
            for tensor in adapter.tensors():
                known = blocks.get(id(tensor)) or self._sent.find(tensor, device, dtype)
                if known is not None:
                    own[id(tensor)] = known
            views = {key: block.views[key] for key, block in own.items()}
            distinct = {id(block): block for block in own.values()}
            made.append(Upload(adapter.on(views), device, dtype, tuple(distinct.values())))
        return made, stays

    def _copy(self, tensors: Sequence[Tensor], device: torch.device, dtype: torch.dtype) -> Block:
        """Return one copy of tensors of host memory."""
        size = packed_bytes(tensors, dtype)
        stage = self._stages.setdefault(device, _Stage(device))
        here, there = stage.take(size), torch.empty(size, dtype=torch.uint8, device=device)
        for tensor, place in _pieces(here, tensors, dtype):
            place.copy_(tensor)
        there.copy_(here, non_blocking=stage.apart)
        views = {id(tensor): place for tensor, place in _pieces(there, tensors, dtype)}
        return Block(rounded(size), views)

    def wait(self) -> None:
        """Return when all copies are there: memory of the host that they are made from is free for others then."""
        for stage in self._stages.values():
            stage.wait()


class _Stage:
    """Memory of the host that copies to one device go through, so that nobody waits for each."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._wait = waiter(device)
        self._slab = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    @property
    def apart(self) -> bool:
        """Whether copies may go on while the host does."""
        return self._wait is not None

    def take(self, size: int) -> Tensor:
        """Return so many bytes, valid until the next call."""
        if self._wait is None:
            return torch.empty(size, dtype=torch.uint8)
        if self._used + size > self._slab.numel():
            self.wait()
            if size > self._slab.numel():
                self._slab = pinned(max(size, _STAGE_BYTES))
        piece = self._slab[self._used : self._used + size]
        self._used += size
        return piece

    def wait(self) -> None:
        """Return when all of it may be filled again."""
        if self._wait is not None and self._used:
            self._wait(self._device)
            self._used = 0
