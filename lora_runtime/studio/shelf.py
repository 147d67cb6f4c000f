"""The LoRAs of the folders as cards: picture or film, name, family, words they were trained with, and the tag."""

from __future__ import annotations

import base64
import io
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from lora_runtime.catalog import Entry, LoraCatalog
from lora_runtime.errors import LoraError
from lora_runtime.families import UNKNOWN
from lora_runtime.panel.marks import Mark, Seen
from lora_runtime.panel.sidecars import film_beside, has_words, origin_of, picture_beside, words_of
from lora_runtime.prompt import parse_prompt

__all__ = ["MOST_CARDS", "Card", "Wanted", "cards", "families", "mark_of", "names_of", "picture_of", "used_in"]

MOST_CARDS = 60  # at once: a person searches, and does not look through thousands
_SIDE = 192  # pixels of a card's picture
_LARGEST = 50_000_000  # bytes of a picture that is looked at
_NO_TAG = re.compile("[:>]")  # what ends a name in a tag


@dataclass(frozen=True)
class Card:
    """A file to be chosen; `picture` is a data address, "" for none, `words` are what it was trained with.

    `film` says whether there is one, and `page` is the address of the model's page, or "".
    """

    name: str
    tag: str
    family: str
    words: tuple[str, ...]
    picture: str
    film: bool = False
    page: str = ""
    favourite: bool = False


@dataclass(frozen=True)
class Wanted:
    """Which files are wanted: with all `words`, of a `family` ("" for any), favourites alone, those used last first."""

    words: str = ""
    family: str = ""
    favourites: bool = False
    last_used_first: bool = False


def cards(catalog: LoraCatalog, wanted: Wanted, seen: Seen | None = None) -> tuple[list[Card], int]:
    """Return the first cards of those that are wanted, and how many there are; `seen` are the marks of files."""
    seen = seen or Seen()
    words = wanted.words.casefold().split()
    found = [
        entry
        for entry in catalog.entries
        if has_words(entry, words)
        and wanted.family in ("", entry.family)
        and (not wanted.favourites or mark_of(catalog, entry, seen).favourite)
    ]
    if wanted.last_used_first:
        found.sort(key=lambda entry: -mark_of(catalog, entry, seen).used)
    names = names_of(catalog)
    return [_card(catalog, entry, names[entry.path], seen) for entry in found[:MOST_CARDS]], len(found)


def families(catalog: LoraCatalog) -> list[str]:
    """Return the families of the files, the most frequent first, and "unknown" last."""
    counts = Counter(entry.family for entry in catalog.entries)
    return sorted(counts, key=lambda name: (name == UNKNOWN, -counts[name]))


def mark_of(catalog: LoraCatalog, entry: Entry, seen: Seen) -> Mark:
    """Return what is kept of a file."""
    known = catalog.known_hashes(entry) if seen.all else None
    return seen.of(entry.path, known.sha256 if known else "")


def used_in(catalog: LoraCatalog, prompt: str) -> Iterator[tuple[Path, str]]:
    """Yield the files that the tags of a prompt mean, each with its hash where that is known."""
    for name in dict.fromkeys(tag.name for tag in parse_prompt(prompt).tags):
        with suppress(LoraError):  # said by who applied it
            found = catalog.pair(name) or (catalog.resolve(name, look_again=False, suggest=False),)
            for entry in found:
                known = catalog.known_hashes(entry)
                yield entry.path, known.sha256 if known else ""


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


def _card(catalog: LoraCatalog, entry: Entry, name: str, seen: Seen) -> Card:
    return Card(
        name=entry.relative,
        tag=f"<lora:{name}:1>",
        family=entry.family,
        words=words_of(entry),
        picture=picture_of(entry),
        film=film_beside(entry.path) is not None,
        page=origin_of(entry.path).page,
        favourite=mark_of(catalog, entry, seen).favourite,
    )


def picture_of(entry: Entry) -> str:
    """Return the picture beside a file, as a small one in a data address; "" for none."""
    found = picture_beside(entry.path)
    try:
        status = found.stat() if found else None
    except OSError:  # gone meanwhile
        return ""
    return _thumbnail(found, status.st_mtime_ns) if found and status and status.st_size <= _LARGEST else ""


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
