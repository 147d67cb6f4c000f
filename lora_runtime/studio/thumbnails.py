"""The pictures beside LoRA files, made small."""

from __future__ import annotations

import base64
import io
from functools import lru_cache
from pathlib import Path

from lora_runtime.catalog import Entry
from lora_runtime.panel.sidecars import picture_beside

__all__ = ["SIDE", "picture_of", "thumbnail"]

SIDE = 256  # pixels of a card's picture: cards are half as wide, and screens may have two pixels for one
_LARGEST = 50_000_000  # bytes of a picture that is looked at


def picture_of(entry: Entry) -> str:
    """Return the picture beside a file, as a small one in a data address; "" for none."""
    found = picture_beside(entry.path)
    data = thumbnail(found) if found else b""
    return f"data:image/webp;base64,{base64.b64encode(data).decode()}" if data else ""


def thumbnail(path: Path) -> bytes:
    """Return a picture as a WebP whose longer side has `SIDE` pixels, b"" where it cannot be read."""
    try:
        status = path.stat()
    except OSError:  # gone meanwhile
        return b""
    return _small(path, status.st_mtime_ns) if status.st_size <= _LARGEST else b""


@lru_cache(maxsize=2048)
def _small(path: Path, mtime_ns: int) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    try:
        with Image.open(path) as opened:
            opened.draft("RGB", (SIDE, SIDE))
            small = opened.convert("RGB")
            small.thumbnail((SIDE, SIDE))
            small.save(buffer, "WEBP", quality=80)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return b""
    return buffer.getvalue()
