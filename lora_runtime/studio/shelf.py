"""The LoRAs of the folders as cards: picture, name, family, words they were trained with, and the tag."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from lora_runtime.catalog import Entry, LoraCatalog
from lora_runtime.errors import LoraError
from lora_runtime.header import read_header
from lora_runtime.metadata import trigger_words

__all__ = ["MOST_CARDS", "Card", "cards"]

MOST_CARDS = 60  # at once: a person searches, and does not look through thousands
_SIDE = 192  # pixels of a card's picture
_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".preview.png", ".preview.jpg", ".preview.jpeg", ".preview.webp")
_LARGEST = 50_000_000  # bytes of a picture that is looked at
_NO_TAG = re.compile("[:>]")  # what ends a name in a tag


@dataclass(frozen=True)
class Card:
    """A file to be chosen; `picture` is a data address, "" for none, and `words` are what its author trained it with."""

    name: str
    tag: str
    family: str
    words: tuple[str, ...]
    picture: str


def cards(catalog: LoraCatalog, search: str = "") -> tuple[list[Card], int]:
    """Return the first cards with all words of a search in their paths, in any order, and how many there are."""
    wanted = search.casefold().split()
    found = [
        entry
        for entry in catalog.entries
        if all(word in f"{entry.relative} {entry.alias or ''} {entry.family}".casefold() for word in wanted)
    ]
    names = [entry.name for entry in catalog.entries]
    return [_card(entry, alone=names.count(entry.name) == 1, catalog=catalog) for entry in found[:MOST_CARDS]], len(
        found
    )


def _card(entry: Entry, *, alone: bool, catalog: LoraCatalog) -> Card:
    name = entry.name if alone else entry.relative
    if _NO_TAG.search(name) or name != name.strip():
        try:
            name = f"#{catalog.hashes(entry).sha256_of_tensors[:12]}"
        except LoraError:  # gone since it was listed: the tag will say so
            pass
    picture = _picture(entry.path)
    return Card(
        name=entry.relative,
        tag=f"<lora:{name}:1>",
        family=entry.family,
        words=_words(entry.path, entry.stamp),
        picture="" if picture is None else _thumbnail(picture, picture.stat().st_mtime_ns),
    )


@lru_cache(maxsize=4096)
def _words(path: Path, stamp: tuple[int, int]) -> tuple[str, ...]:
    """Return the words a file was trained with, () where it cannot be read any more."""
    try:
        return trigger_words(read_header(path).metadata)
    except LoraError:
        return ()


def _picture(path: Path) -> Path | None:
    """Return the picture beside a file."""
    beside = (path.with_name(path.stem + ending) for ending in _ENDINGS)
    return next((found for found in beside if found.is_file() and found.stat().st_size <= _LARGEST), None)


@lru_cache(maxsize=1024)
def _thumbnail(path: Path, mtime_ns: int) -> str:
    """Return a picture as a small one in a data address, "" where it cannot be read."""
    from PIL import Image

    buffer = io.BytesIO()
    try:
        with Image.open(path) as opened:
            opened.draft("RGB", (_SIDE, _SIDE))
            small = opened.convert("RGB")
            small.thumbnail((_SIDE, _SIDE))
            small.save(buffer, "WEBP", quality=80)
    except (OSError, ValueError, Image.DecompressionBombError):
        return ""
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
