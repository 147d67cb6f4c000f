"""A safetensors file, written tensor by tensor and only whole: under its name is the old file, or all of the new one.

The library's own writer takes all tensors at once, which for a checkpoint is all of it in memory. The layout is the
library's: the widest dtypes first, then names in order, and a header padded to 8 bytes, so that each tensor is aligned.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from lora_runtime.errors import LoraFileError
from lora_runtime.tensors import DTYPES

__all__ = ["Blank", "File", "check_free", "header_size", "write_file", "write_stream"]

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ALIGNMENT = 8
# kohya's older hash is of 64 kB of the file, from 1 MB on.
_LEGACY = slice(0x100000, 0x110000)


@dataclass(frozen=True)
class Blank:
    """What the header says of a tensor that is to come."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """The bytes that it will have."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass(frozen=True)
class File:
    """A file that was written: `sha256` of all of it, as 64 hex digits, and its size in bytes."""

    path: Path
    size: int
    sha256: str


def check_free(out: str | os.PathLike[str], *, force: bool) -> Path:
    """Return the path to be written; LoraFileError where something is there and not `force`, or it can be no file."""
    path = Path(out)
    if path.suffix.lower() != ".safetensors":
        raise LoraFileError(f"{path}: would be no safetensors file by its name; give one that ends in .safetensors")
    if path.is_dir():
        raise LoraFileError(f"{path}: this is a folder; give the name of a file")
    if not path.parent.is_dir():
        raise LoraFileError(f"{path}: the folder {path.parent} does not exist; make it first")
    if path.exists() and not force:
        raise LoraFileError(f"{path}: exists already; give another name, or --force (force=True) to replace it")
    return path


def write_file(out: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> File:
    """Write tensors that are in memory, with kohya's hashes of them among the metadata.

    `sshs_model_hash` is the SHA-256 of the tensors' bytes, `sshs_legacy_hash` that of 64 kB, as kohya's trainer writes
    them. Raises LoraFileError where the file cannot be written; nothing is left behind then.
    """
    blanks = {name: Blank(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    hashed = hashlib.sha256()
    kohyas = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    window, place = hashlib.sha256(), 0
    piece: bytes | memoryview
    for piece in _pieces(blanks, lambda name: tensors[name], kohyas):
        if place:
            hashed.update(piece)
        window.update(piece[max(0, _LEGACY.start - place) : max(0, _LEGACY.stop - place)])
        place += len(piece)
    both = {"sshs_model_hash": hashed.hexdigest(), "sshs_legacy_hash": window.hexdigest()[:8]}
    return write_stream(out, blanks, lambda name: tensors[name], {**metadata, **both})


def write_stream(
    out: Path, blanks: Mapping[str, Blank], tensor_of: Callable[[str], Tensor], metadata: Mapping[str, str]
) -> File:
    """Write tensors one after the other, each asked for when it is its turn, so that one at a time is in memory.

    The file has its name once all of it is on the disk. Raises LoraFileError where it cannot be written.
    """
    hashed, size = hashlib.sha256(), 0
    with _replacing(out) as file:
        for piece in _pieces(blanks, tensor_of, metadata):
            hashed.update(piece)
            size += file.write(piece)
    return File(out, size, hashed.hexdigest())


def header_size(blanks: Mapping[str, Blank], metadata: Mapping[str, str]) -> int:
    """Return how many bytes of a file are before its tensors."""
    return len(_header(blanks, metadata))


def _pieces(
    blanks: Mapping[str, Blank], tensor_of: Callable[[str], Tensor], metadata: Mapping[str, str]
) -> Iterator[bytes | memoryview]:
    yield _header(blanks, metadata)
    for name in _order(blanks):
        tensor, blank = tensor_of(name), blanks[name]
        if (tensor.dtype, tuple(tensor.shape)) != (blank.dtype, blank.shape):
            raise ValueError(f"{name}: {tensor.dtype} {tuple(tensor.shape)}, where {blank} was announced")
        yield _bytes(tensor)


def _order(blanks: Mapping[str, Blank]) -> list[str]:
    return sorted(blanks, key=lambda name: (-blanks[name].dtype.itemsize, name))


def _header(blanks: Mapping[str, Blank], metadata: Mapping[str, str]) -> bytes:
    table: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    place = 0
    for name in _order(blanks):
        blank = blanks[name]
        ends = [place, place + blank.nbytes]
        table[name] = {"dtype": _NAMES[blank.dtype], "shape": list(blank.shape), "data_offsets": ends}
        place = ends[1]
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % _ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


def _bytes(tensor: Tensor) -> memoryview:
    """Return a tensor's bytes, which live as long as what is returned. Not by way of numpy, which has no bfloat16."""
    tensor = tensor.detach().cpu().contiguous()
    count = tensor.numel() * tensor.element_size()
    if count == 0:
        return memoryview(b"")
    array = (ctypes.c_char * count).from_address(tensor.data_ptr())
    array.owner = tensor  # type: ignore[attr-defined]
    return memoryview(array).cast("B")


@contextmanager
def _replacing(out: Path) -> Iterator[BinaryIO]:
    """Give a file for a `with` block that takes the place of `out` at its end; an error or ^C leaves nothing."""
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, out)  # noqa: PTH105 — on Windows too it takes the place of a file that is there
    except OSError as error:
        _remove(part)
        raise LoraFileError(f"{out}: cannot be written: {error.strerror or error}; nothing was left behind") from error
    except BaseException:
        _remove(part)
        raise


def _remove(part: Path) -> None:
    with suppress(OSError):
        part.unlink()
