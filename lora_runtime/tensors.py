"""The bytes of a file → its tensors, each checked when it is asked for, and its SHA-256 behind one read."""

from __future__ import annotations

import hashlib
import math
import mmap
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from lora_runtime.errors import CorruptFileError, LoraFileError
from lora_runtime.header import Header, TensorInfo, header_of, open_file, shown

__all__ = ["DTYPES", "Shapes", "Tensors", "is_finite", "read_one", "read_tensors"]

_PIECE = 1 << 20  # what is read and hashed at a time, so that it is still in the cache; fp8 is looked through likewise
_HUGE_PAGES = 8 << 20  # from this size on they pay: at most 2 MB are lost to rounding
_MOST_DIMENSIONS = 8  # a convolution of three has five; torch itself stops at 64, and not everywhere with an error

# fp8 and the wide unsigned types are missing from older torch.
DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {
        name: getattr(torch, known)
        for name, known in {
            "F64": "float64",
            "F32": "float32",
            "F16": "float16",
            "BF16": "bfloat16",
            "F8_E4M3": "float8_e4m3fn",
            "F8_E5M2": "float8_e5m2",
            "F8_E4M3FNUZ": "float8_e4m3fnuz",
            "F8_E5M2FNUZ": "float8_e5m2fnuz",
            "I64": "int64",
            "I32": "int32",
            "I16": "int16",
            "I8": "int8",
            "U8": "uint8",
            "BOOL": "bool",
        }.items()
        if hasattr(torch, known)
    }
)


# ---- bytes ----------------------------------------------------------------------------------------------------------


def read_tensors(path: Path, hasher: ThreadPoolExecutor) -> tuple[Header, Tensors, Callable[[], str]]:
    """Return the header, the tensors and a function that waits for the hash of the whole file.

    The bytes are read once, so all three are of the same file even while a trainer writes the next one. A memory map
    would die with the process when the file is truncated, and would lock it on Windows. The hash takes longer than
    all the rest: `hasher`, of one thread, follows behind. The header is checked before memory is taken for the tensors.
    """
    with open_file(path) as file:
        sha256 = hashlib.sha256()
        header, start, done = header_of(path, file, sha256), file.tell(), 0
        memory = _memory(path, header.size - start)
        view = memoryview(memory)
        while count := file.readinto(view[done : done + _PIECE]):
            hasher.submit(sha256.update, view[done : done + count])
            done += count
    if done != len(view):
        raise CorruptFileError(f"{path}: was cut off while it was read, {start + done:,} of {header.size:,} bytes in")
    # Not by way of numpy, whose second version torch 2.1 and 2.2 cannot use.
    buffer = torch.frombuffer(memory, dtype=torch.uint8) if done else torch.empty(0, dtype=torch.uint8, device="cpu")
    return header, Tensors(header.tensors, buffer, start), hasher.submit(sha256.hexdigest).result


def read_one(path: Path, info: TensorInfo) -> Tensor:
    """Return one tensor of a file whose header was read before; of a checkpoint no more is in memory.

    Raises LoraFileError where this torch has no such dtype or the file cannot be read, CorruptFileError where it was
    cut off since.
    """
    if info.dtype not in DTYPES:
        raise LoraFileError(f"{path}: has tensors of {info.dtype}, which torch {torch.__version__} cannot read")
    size = info.end - info.begin
    with open_file(path) as file:
        file.seek(info.begin)
        memory = _memory(path, size)
        view, done = memoryview(memory), 0
        while count := file.readinto(view[done:]):
            done += count
    if done != size:
        raise CorruptFileError(f"{path}: was cut off since its header was read, {size - done:,} bytes are missing")
    if size == 0:
        return torch.empty(info.shape, dtype=DTYPES[info.dtype])
    return torch.frombuffer(memory, dtype=torch.uint8).view(DTYPES[info.dtype]).view(info.shape)


def _memory(path: Path, size: int) -> bytearray | mmap.mmap:
    """Return `size` bytes of new memory; LoraFileError where there are not so many.

    Many are not a bytearray's, which would be filled with zeros first, and lie in huge pages where the system has them:
    a first touch of 200 MB takes 100 ms in small pages, four times as long as reading them from a cached file.
    """
    try:
        if size < _HUGE_PAGES:
            return bytearray(size)
        if not hasattr(mmap, "MADV_HUGEPAGE"):
            return mmap.mmap(-1, size)
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with suppress(OSError):  # a kernel that was built without
            memory.madvise(mmap.MADV_HUGEPAGE)
        return memory
    except (MemoryError, OSError, OverflowError) as error:
        raise LoraFileError(f"{path}: cannot be read: there is no memory for its {size:,} bytes") from error


class Tensors:
    """The tensors of a buffer, made when asked for; `start` is the place in the file where the buffer begins."""

    def __init__(self, infos: Mapping[str, TensorInfo], buffer: Tensor, start: int) -> None:
        self.infos = infos
        self._buffer = buffer
        self._start = start
        self._typed: dict[str, Tensor] = {}  # the buffer as if all of it had one dtype
        # One look at each run of equal dtype costs a twentieth of a look at each tensor.
        self._all_finite = all(is_finite(self._slice(info)) for info in _runs(infos.values(), start))

    def finite(self, key: str) -> Tensor:
        """Return a tensor; ValueError says why it cannot be used."""
        info = _readable(key, self.infos[key])
        tensor = self._slice(info)
        if not (self._all_finite or is_finite(tensor)):
            raise ValueError(f"{shown(key)} has NaN or infinity in it")
        return tensor

    def _slice(self, info: TensorInfo) -> Tensor:
        """Return a view into the buffer, or a copy where the place is not aligned for the dtype."""
        dtype = DTYPES[info.dtype]
        size, begin = dtype.itemsize, info.begin - self._start
        if begin % size:
            return self._buffer[begin : info.end - self._start].clone().view(dtype).view(info.shape)
        if info.dtype not in self._typed:
            self._typed[info.dtype] = self._buffer[: self._buffer.numel() // size * size].view(dtype)
        # One call, for a slice and a view, which take three times as long.
        return self._typed[info.dtype].as_strided(info.shape, _strides(info.shape), begin // size)


class Shapes:
    """The tensors of a header: of the right shape and dtype, and without values."""

    def __init__(self, infos: Mapping[str, TensorInfo]) -> None:
        self.infos = infos

    def finite(self, key: str) -> Tensor:
        """Return a tensor on the meta device, or a 1 for a single number; ValueError says why it cannot be used."""
        info = _readable(key, self.infos[key])
        if math.prod(info.shape) == 1:
            return torch.ones(info.shape, dtype=DTYPES[info.dtype])
        return torch.empty(info.shape, dtype=DTYPES[info.dtype], device="meta")


def _readable(key: str, info: TensorInfo) -> TensorInfo:
    """Return what the header says of a tensor; ValueError where torch has nothing like it."""
    if info.dtype not in DTYPES:
        raise ValueError(f"{shown(key)} is stored as {info.dtype}, which this torch cannot read")
    if len(info.shape) > _MOST_DIMENSIONS:
        raise ValueError(f"{shown(key)} has {len(info.shape)} dimensions; no weight has more than {_MOST_DIMENSIONS}")
    return info


@lru_cache(maxsize=1024)
def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides of a contiguous tensor."""
    strides = [1] * len(shape)
    for axis in range(len(shape) - 1, 0, -1):
        strides[axis - 1] = strides[axis] * shape[axis]
    return tuple(strides)


def _runs(infos: Iterable[TensorInfo], start: int) -> Iterator[TensorInfo]:
    """Yield each stretch of the file that holds one dtype, as a tensor of one dimension; `start` is aligned."""
    in_order = sorted((info for info in infos if info.dtype in DTYPES), key=lambda info: info.begin)
    for dtype, run in groupby(in_order, key=lambda info: info.dtype):
        stretch = list(run)
        begin, end = stretch[0].begin, stretch[-1].end
        size, whole = DTYPES[dtype].itemsize, end - begin == sum(info.end - info.begin for info in stretch)
        if whole and (begin - start) % size == 0:
            yield TensorInfo(dtype, ((end - begin) // size,), begin, end)
        else:  # around a tensor of a dtype that torch lacks, or to be copied, which is better done one by one
            yield from stretch


def is_finite(tensor: Tensor) -> bool:
    """Return whether no element is NaN or infinite; the extremes tell, 30 times faster than `isfinite().all()`."""
    if tensor.numel() == 0 or not tensor.dtype.is_floating_point:
        return True
    if tensor.dtype.itemsize == 1:  # torch has no extremes of fp8; in pieces, since float32 is four times as large
        return all(is_finite(piece.float()) for piece in torch.split(tensor.flatten(), _PIECE))
    extremes = torch.aminmax(tensor) if _has_aminmax(tensor.dtype) else (tensor.min(), tensor.max())
    return all(math.isfinite(extreme.item()) for extreme in extremes)


@lru_cache
def _has_aminmax(dtype: torch.dtype) -> bool:
    """Return whether this torch finds both extremes in one pass: 2.1 does not in float16 on the CPU."""
    try:
        torch.aminmax(torch.zeros(1, dtype=dtype))
    except RuntimeError:
        return False
    return True
