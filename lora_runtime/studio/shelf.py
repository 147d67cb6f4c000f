"""The LoRAs of the folders as cards: picture, name, family, words they were trained with, and the tag."""

from __future__ import annotations

import base64
import io
import re
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from lora_runtime.catalog import Entry, LoraCatalog
from lora_runtime.errors import LoraError
from lora_runtime.header import read_header
from lora_runtime.metadata import trigger_words

__all__ = ["MOST_CARDS", "Card", "cards", "names_of", "picture_of"]

MOST_CARDS = 60  # at once: a person searches, and does not look through thousands
_SIDE = 192  # pixels of a card's picture
_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".preview.png", ".preview.jpg", ".preview.jpeg", ".preview.webp")
_LARGEST = 50_000_000  # bytes of a picture that is looked at
_NO_TAG = re.compile("[:>]")  # what ends a name in a tag


@dataclass(frozen=True)
class Card:
    """A file to be chosen; `picture` is a data address, "" for none, `words` are what it was trained with."""

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
    names = names_of(catalog)
    return [_card(entry, names[entry.path]) for entry in found[:MOST_CARDS]], len(found)


def names_of(catalog: LoraCatalog) -> dict[Path, str]:
    """Return what a tag calls each file: its name, its path where others have that too, its hash where none can."""
    entries = catalog.entries
    counts = Counter(entry.name for entry in entries)
    found = {}
    for entry in entries:
        name = entry.name if counts[entry.name] == 1 else entry.relative
        if _NO_TAG.search(name) or name != name.strip():
            with suppress(LoraError):  # gone since it was listed: the tag will say so
                name = f"#{catalog.hashes(entry).sha256_of_tensors[:12]}"
        found[entry.path] = name
    return found


def _card(entry: Entry, name: str) -> Card:
    return Card(
        name=entry.relative,
        tag=f"<lora:{name}:1>",
        family=entry.family,
        words=_words(entry.path, entry.stamp),
        picture=picture_of(entry),
    )


def picture_of(entry: Entry) -> str:
    """Return the picture beside a file, as a small one in a data address; "" for none."""
    found = _picture(entry.path)
    return "" if found is None else _thumbnail(found, found.stat().st_mtime_ns)


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
