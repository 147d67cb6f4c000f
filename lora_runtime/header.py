"""The header of a safetensors file, read and checked without its tensors; and the hashes of a file.

A file is 8 bytes (the length n of the header, little-endian), n bytes of JSON and the tensors:

    {"__metadata__": {str: str}, "….lora_down.weight": {"dtype": "F16", "shape": [8, 320], "data_offsets": [0, 5120]}}

Parsed here and not by `safetensors.safe_open`, because that imports numpy, in 0.4.2 takes 17 s for 10,000 keys
(0.03 s here), refuses dtypes that are newer than itself, and keeps the file mapped, which on Windows stops a
trainer from replacing it. What is checked is what the library checks, so a file that passes here also loads there.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import re
import shlex
import stat
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, NoReturn, Protocol

from lora_runtime.errors import CorruptFileError, LoraFileError, RefusedFileError
from lora_runtime.foreign import AGAIN, HEAD, content_of, is_pickle

__all__ = [
    "PICKLE_SUFFIXES",
    "Hashes",
    "Header",
    "TensorInfo",
    "conversion_hint",
    "hashes",
    "header_of",
    "no_collection",
    "open_file",
    "read_header",
    "reason_of",
    "shown",
]

PICKLE_SUFFIXES = frozenset({".pt", ".pth", ".ckpt", ".bin"})

# The limit of the safetensors library itself.
_MAX_HEADER = 100_000_000
_LENGTH = struct.Struct("<Q")
# Brackets and commas, eight of them a tensor: so many small objects take some 300 MB, where those of a header of
# 100 MB could take 5 GB.
_MAX_MARKS = 4_000_000
# No dimension, and no product of those that are not 0, goes beyond what torch can hold in an int64.
_MAX_ELEMENTS = 2**63
_MINUS_ZERO = re.compile(r"-0[\s,\]}]")
_MANY_OBJECTS = 100_000
_SHOWN = 120  # characters of a name or a shape in a message

_BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}


class TensorInfo(NamedTuple):
    """One tensor of a file: `dtype` in the format's own words ("F16", "BF16"), and where its bytes lie in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int = 0
    end: int = 0


@dataclass(frozen=True)
class Header:
    """What a file says about itself: `size` is the whole file's, in bytes; nothing is kept open."""

    path: Path
    size: int
    metadata: Mapping[str, str]
    tensors: Mapping[str, TensorInfo]


@dataclass(frozen=True)
class Hashes:
    """A file's SHA-256 and that of its tensor bytes alone, as 64 hex digits.

    The second stays the same when only the metadata is edited. kohya stores it as `sshs_model_hash`, and the WebUI
    shows its first 12 digits. It is always computed, never believed from the metadata.
    """

    sha256: str
    sha256_of_tensors: str


class _Invalid(ValueError):
    """The reason why a header cannot be used."""


def conversion_hint(path: str | os.PathLike[str]) -> str:
    """Return the sentence that tells how to turn a pickle file into safetensors."""
    source = Path(path)
    target = source.with_suffix(".safetensors")
    if target == source:
        target = source.with_suffix(".converted.safetensors")
    quote = '"{}"'.format if os.name == "nt" else shlex.quote
    names = f"{quote(source.name)} {quote(target.name)}"
    return (
        "To convert it, in a place that you trust: "
        'python -c "import sys, torch; from safetensors.torch import save_file; '
        "d = torch.load(sys.argv[1], map_location='cpu', weights_only=True); "
        "save_file({k: v.contiguous() for k, v in d.get('state_dict', d).items()}, sys.argv[2])\" " + names
    )


def reason_of(error: LoraFileError, path: str | os.PathLike[str]) -> str:
    """Return why `path` cannot be used: an error of `read_header` without the path and what to do next."""
    return str(error).removeprefix(f"{path}: ").removesuffix(f" {conversion_hint(path)}").removesuffix(f". {AGAIN}")


def read_header(path: str | os.PathLike[str]) -> Header:
    """Return the header of the safetensors file `path`, checked; no tensor is read and nothing stays open.

    Raises RefusedFileError for a pickle, by its name (never opened) or by its first bytes, CorruptFileError for
    anything else that is not valid safetensors, and LoraFileError where the file cannot be read at all.
    Each message is "{path}: {reason}".
    """
    path = Path(path)
    with open_file(path) as file, no_collection():
        return header_of(path, file)


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...


def header_of(path: Path, file: FileIO, *hashes: _Hash) -> Header:
    """Return the header of an open file, which is left at its first tensor; raises as `read_header` does.

    What was read goes through `hashes` too. Nothing larger than the header is taken into memory.
    """
    size = os.fstat(file.fileno()).st_size
    try:
        head = file.read(8) or b""
        length = _header_length(head, size)
        raw = file.read(length) or b""
        for each in hashes:
            each.update(head)
            each.update(raw)
        return _parse(path, size, raw, 8 + length)
    except (ValueError, RecursionError) as error:
        file.seek(0)
        start = file.read(HEAD) or b""
        if is_pickle(start):
            _refuse(path, "this is a pickle under another name, which can run code when read; not read.", error)
        reason = content_of(start) or f"{_reason(error)}. {AGAIN}"
        raise CorruptFileError(f"{path}: not a valid safetensors file: {reason}") from error


@contextmanager
def no_collection() -> Iterator[None]:
    """Let the garbage collector wait in a `with` block: nothing that reading a file makes is garbage.

    Its walks over all that exists were a third of the time of a file of 100,000 keys.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            # The first walk after the block would be over all that was made in it: where that is much, it goes straight
            # to the oldest generation. (What a host has frozen stays so.)
            if gc.get_count()[0] > _MANY_OBJECTS and gc.get_freeze_count() == 0:
                gc.freeze()
                gc.unfreeze()
            gc.enable()


def shown(name: object) -> str:
    """Return a name out of a file, or a shape, as a message can show it: on one line, and not longer than that."""
    text = str(name)
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


@contextmanager
def open_file(path: Path) -> Iterator[FileIO]:
    """Give the open file for a `with` block; raises RefusedFileError for a pickle by its name, and never opens it.

    What goes wrong with the file inside the block is a LoraFileError, as is a pipe or a device, which could wait for
    ever.
    """
    if path.suffix.lower() in PICKLE_SUFFIXES:
        _refuse(path, f"{path.suffix} files are pickles, which can run code when read; never opened.")
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise OSError(0, "not a regular file")
        # Unbuffered: the header is two reads, and everything else is read in large pieces.
        with FileIO(path, "rb") as file:
            yield file
    except OSError as error:
        raise LoraFileError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # a NUL in the name
        raise LoraFileError(f"{path}: cannot be read: no possible file name: {error}") from error


def hashes(path: str | os.PathLike[str]) -> Hashes:
    """Return both hashes of the safetensors file `path`, read once in pieces of 1 MiB.

    Raises CorruptFileError where the file ends before its header does, LoraFileError where it cannot be read.
    """
    path = Path(path)
    whole, tensors = hashlib.sha256(), hashlib.sha256()
    piece = memoryview(bytearray(1 << 20))
    with open_file(path) as file:
        head = file.read(8)
        try:
            length = _header_length(head, os.fstat(file.fileno()).st_size)
        except _Invalid as error:
            raise CorruptFileError(f"{path}: not a valid safetensors file: {error}") from error
        whole.update(head)
        while length and (count := file.readinto(piece[: min(length, len(piece))])):
            whole.update(piece[:count])
            length -= count
        while count := file.readinto(piece):
            whole.update(piece[:count])
            tensors.update(piece[:count])
    return Hashes(whole.hexdigest(), tensors.hexdigest())


def _refuse(path: Path, reason: str, cause: BaseException | None = None) -> NoReturn:
    raise RefusedFileError(f"{path}: {reason} {conversion_hint(path)}") from cause


def _reason(error: Exception) -> str:
    if isinstance(error, _Invalid):
        return str(error)
    if isinstance(error, RecursionError):
        return "the header is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return f"the header is not UTF-8 at byte {8 + error.start}"
    return f"the header is not JSON: {error}"


def _header_length(head: bytes, size: int) -> int:
    """Return the length of the header in bytes, checked against the file's size and the format's limit."""
    if len(head) < 8:
        raise _Invalid(f"it is only {size} bytes long" if size else "it is empty")
    length: int = _LENGTH.unpack(head)[0]
    if length > size - 8:
        raise _Invalid(
            f"its header should have {length:,} bytes, and the whole file has {size:,}: it is cut off, or no such file"
        )
    if length > _MAX_HEADER:
        raise _Invalid(f"its header has {length:,} bytes; the format allows {_MAX_HEADER:,}")
    return length


def _parse(path: Path, size: int, raw: bytes, start: int) -> Header:
    if sum(map(raw.count, (b"{", b"[", b","))) > _MAX_MARKS:
        raise _Invalid(f"its header has more than {_MAX_MARKS:,} brackets and commas; no LoRA needs that many")
    # Decoded first: json.loads would also accept UTF-16 and UTF-32 from bytes.
    text = raw.decode("utf-8")
    if not text.startswith("{"):
        raise _Invalid("the header does not begin with {")
    integer = _integer if _MINUS_ZERO.search(text) else None  # None is C's own, and several times as fast
    found = json.loads(text, parse_constant=_no_constant, parse_int=integer, object_pairs_hook=_table)
    if "\\u" in text:
        _check_characters(found)
    metadata = found.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _Invalid("__metadata__ is not a table of strings")
    tensors = {name: _tensor(name, info, start) for name, info in found.items()}
    _check_layout(tensors, start, size)
    return Header(path, size, MappingProxyType(metadata), MappingProxyType(tensors))


def _integer(text: str) -> int | float:
    """Return a whole number; "-0" is a fraction to the library, so that it refuses it as an extent or an offset."""
    return -0.0 if text == "-0" else int(text)


def _no_constant(text: str) -> NoReturn:
    raise _Invalid(f"the header is not JSON: {text} is no JSON number")


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; of a name that it has twice, it would be anybody's guess which one is meant."""
    table = dict(pairs)
    if len(table) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        raise _Invalid(f"the header has {shown(counts.most_common(1)[0][0])!r} twice")
    return table


def _check_characters(found: dict[str, Any]) -> None:
    """Check that no text holds half a character, as the escape of a lone surrogate does: it could not be printed."""
    try:
        json.dumps(found, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise _Invalid("the header has an escape that stands for half a character") from None


def _tensor(name: str, info: object, start: int) -> TensorInfo:
    """Return one tensor's record; its byte range must be as long as its dtype and shape say."""
    try:
        dtype, shape, (begin, end) = info["dtype"], info["shape"], info["data_offsets"]  # type: ignore[index]
        bits = _BITS[dtype]
    except (KeyError, TypeError, ValueError):
        raise _Invalid(f"tensor {shown(name)!r} has no known dtype, or lacks its shape or data_offsets") from None
    # `type`, not isinstance: JSON's true would pass as 1.
    if type(shape) is not list or type(begin) is not int or type(end) is not int or begin < 0:
        raise _Invalid(f"tensor {shown(name)!r}: shape and data_offsets must be whole numbers from 0")
    elements = 1  # those of the other dimensions where one is 0
    for extent in shape:
        if type(extent) is not int or extent < 0:
            raise _Invalid(f"tensor {shown(name)!r}: shape and data_offsets must be whole numbers from 0")
        bits *= extent
        elements *= extent or 1
        # Followed only so far: a hostile shape could make the number itself huge.
        if elements >= _MAX_ELEMENTS:
            raise _Invalid(f"tensor {shown(name)!r} is impossibly large")
    if (end - begin) * 8 != bits:
        raise _Invalid(
            f"tensor {shown(name)!r}: {dtype} {shown(shape)} does not fill bytes {shown(begin)} to {shown(end)}"
        )
    return TensorInfo(dtype, tuple(shape), start + begin, start + end)


def _check_layout(tensors: Mapping[str, TensorInfo], start: int, size: int) -> None:
    """Check that the tensors follow one another without overlap or gap, from the header to the end of the file."""
    expected = start
    for begin, end, name in sorted((tensor.begin, tensor.end, name) for name, tensor in tensors.items()):
        if begin != expected:
            what = "overlaps another" if begin < expected else "leaves a gap before it"
            raise _Invalid(f"tensor {shown(name)!r} {what}")
        expected = end
    if expected != size:
        what = "is cut off: its tensors need" if expected > size else "has bytes that belong to no tensor: it needs"
        raise _Invalid(f"the file {what} {expected:,} bytes, and it has {size:,}")
