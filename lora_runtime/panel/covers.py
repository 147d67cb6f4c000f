"""Pictures that a LoRA file's maker has put into its metadata."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from lora_runtime.catalog import Entry

__all__ = ["Covers", "find_cover"]

_COVER_KEYS = ("ssmd_cover_images", "modelspec.thumbnail")
_MAX_HEADER_FOR_COVER = 32 << 20
# What they begin with, and what they are. Anything else is not handed to a browser.
_IMAGE_TYPES = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"RIFF", "image/webp"),
)


class Covers:
    """Which files have a picture in their metadata; remembered while a file is unchanged."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[tuple[int, int], bool]] = {}

    def has(self, entry: Entry) -> bool:
        """Return whether a file has one.

        The header is searched as bytes: parsing it takes twenty times as long, for every card on the page.
        """
        known = self._known.get(entry.path)
        if known is None or known[0] != entry.stamp:
            raw = _raw_header(entry.path)
            found = any(f'"{key}"'.encode() in raw for key in _COVER_KEYS)
            known = self._known[entry.path] = entry.stamp, found
        return known[1]


def find_cover(metadata: Mapping[str, str]) -> tuple[bytes, str] | None:
    """Return the first picture in metadata and its media type, or None."""
    for data in _pictures(metadata):
        for magic, media_type in _IMAGE_TYPES:
            if data.startswith(magic):
                return data, media_type
    return None


def _raw_header(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            return file.read(length) if length <= _MAX_HEADER_FOR_COVER else b""
    except OSError:
        return b""


def _pictures(metadata: Mapping[str, str]) -> Iterator[bytes]:
    """Yield the pictures in metadata: a list in base64 by some tools, a data address by others."""
    try:
        covers = json.loads(metadata.get("ssmd_cover_images") or "[]")
    except (ValueError, RecursionError):
        covers = []
    texts = [cover for cover in covers if isinstance(cover, str)] if isinstance(covers, list) else []
    texts.append(metadata.get("modelspec.thumbnail", ""))
    for text in texts:
        try:
            data = base64.b64decode(text.rpartition(",")[2])
        except (binascii.Error, ValueError):
            continue
        if data:
            yield data
