"""Safetensors files written by hand, byte for byte, as the format's page says: no library is between test and file."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "I64": 8, "I32": 4, "U8": 1}
LONG_AGO = 1_600_000_000  # seconds: a file this old is remembered by the catalog's index


def frame(header: Any, data: bytes = b"") -> bytes:
    """Return a file's bytes: the length of the header, the header (JSON unless it is bytes), the data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(dtype: str, shape: list[int], begin: int = 0, end: int | None = None) -> dict[str, Any]:
    """Return one tensor's record in a header; its end fits its shape unless it is given."""
    end = begin + BYTES[dtype] * math.prod(shape) if end is None else end
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def write(
    path: Path,
    tensors: Mapping[str, tuple[str, list[int]] | tuple[str, list[int], bytes]] | None = None,
    metadata: Mapping[str, str] | None = None,
    *,
    age: int = LONG_AGO,
) -> Path:
    """Write tensors (dtype, shape and, unless they are zeros, bytes) to `path`; return it. mtime is `age`."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    data = b""
    for name, (dtype, shape, *content) in (tensors or {"x.lora_down.weight": ("F32", [1, 2])}).items():
        raw = content[0] if content else bytes(BYTES[dtype] * math.prod(shape))
        header[name] = tensor(dtype, shape, len(data))
        data += raw
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(frame(header, data))
    os.utime(path, (age, age))
    return path
