"""Which files a search finds, and in which folders files are. With 10,000 files a search takes 20 ms."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lora_runtime.catalog import Entry

from .hashes import Hashes
from .index import Book, Index, natural
from .sidecar import Sidecar

__all__ = ["Fits", "Hidden", "Query", "SortKey", "count_folders", "files_in", "find", "folder_tree"]

Hidden = Literal["Always", "When searched", "Never"]
SortKey = Literal["default", "name", "date_created", "date_modified", "date_used"]
Fits = Callable[[Entry, "Sidecar | None"], bool]

_HEX = re.compile(r"[0-9a-f]{4,64}")
_SHORTEST_SEARCH_FOR_HIDDEN = 4


@dataclass(frozen=True)
class Query:
    """What is searched, and in which order it is wanted.

    A word may be in the path, the alias, the description or the activation text, or begin a known hash; a file has all
    of them, in any order and either case. `folder` is a path in the user's folders ("style/water"), or begins with the
    name of one of these ("/Lora/style"). `family` says which files count at all, `last` which come after all others.
    `used` says when each was used last, for an order by that.
    """

    words: str = ""
    folder: str = ""
    sort: SortKey = "default"
    descending: bool = False
    hidden: Hidden = "When searched"
    family: Fits | None = None
    last: Fits | None = None
    used: Callable[[Entry], float] | None = None

    @property
    def needs_notes(self) -> bool:
        """Whether the notes on files decide what is found."""
        return bool(self.words.split() or self.family or self.last)


def find(query: Query, index: Index, tops: Sequence[Path], notes: Mapping[Path, Sidecar], hashes: Hashes) -> list[Book]:
    """Return what is found; `tops` are the user's folders."""
    wanted = query.words.casefold().split()
    show_hidden = query.hidden == "Always" or (
        query.hidden == "When searched" and len(query.words.strip()) >= _SHORTEST_SEARCH_FOR_HIDDEN
    )
    found = []
    for book in index.books:
        if book.hidden and not show_hidden:
            continue
        if query.folder and not _is_in(book, query.folder, tops):
            continue
        note = notes.get(book.entry.path)
        if wanted and not _has_all(book, note, wanted, hashes):
            continue
        if query.family is not None and not query.family(book.entry, note):
            continue
        found.append((book, query.last is not None and query.last(book.entry, note)))
    if query.sort == "name":
        found.sort(key=lambda item: item[0].entry.path.name.lower())
    elif query.sort == "date_modified":
        found.sort(key=lambda item: item[0].entry.mtime_ns)
    elif query.sort == "date_created":
        found.sort(key=lambda item: item[0].created)
    elif query.sort == "date_used" and (used := query.used) is not None:
        # Files of one date, those that were never used above all, stay in the order of the folders.
        sign = -1 if query.descending else 1
        found.sort(key=lambda item: sign * used(item[0].entry))
    if query.descending and query.sort != "date_used":
        found.reverse()
    found.sort(key=lambda item: item[1])
    return [book for book, _ in found]


def _has_all(book: Book, note: Sidecar | None, wanted: list[str], hashes: Hashes) -> bool:
    text = book.haystack(note)
    for word in wanted:
        if word in text:
            continue
        if not _HEX.fullmatch(word) or not any(digits.startswith(word) for digits in hashes.known(book.entry)):
            return False
    return True


def _is_in(book: Book, folder: str, tops: Sequence[Path]) -> bool:
    folder = folder.rstrip("/")
    if folder.startswith("/"):
        return f"/{tops[book.top].name}/{book.relative}".startswith(f"{folder}/")
    return book.relative.startswith(f"{folder}/")


# --- folders ------------------------------------------------------------------------------------------------------


def count_folders(index: Index, *, hidden: bool) -> dict[str, int]:
    """Return the folders below the user's own that hold files at any depth, and how many, in order.

    Each is named by its path in the user's folder; two of these may share one.
    """
    counts: Counter[str] = Counter()
    for book in index.books:
        if hidden or not book.hidden:
            parent = book.relative.rpartition("/")[0]
            while parent:
                counts[parent] += 1
                parent = parent.rpartition("/")[0]
    return {name: counts[name] for name in sorted(counts, key=natural)}


def folder_tree(index: Index, tops: Sequence[Path], *, hidden: bool) -> dict[str, int]:
    """Return all folders with files at any depth as "/Lora/style", and how many files lie directly in each."""
    counts: Counter[str] = Counter()
    for book in index.books:
        if hidden or not book.hidden:
            place = _folder_of(book, tops)
            counts[place] += 1
            while (place := place.rpartition("/")[0]) and place not in counts:
                counts[place] = 0
    return {name: counts[name] for name in sorted(counts, key=lambda name: [natural(p) for p in name.split("/")])}


def files_in(index: Index, tops: Sequence[Path], folder: str) -> list[Book]:
    """Return the files directly in a folder of the tree, in order."""
    return [book for book in index.books if _folder_of(book, tops) == folder]


def _folder_of(book: Book, tops: Sequence[Path]) -> str:
    return f"/{tops[book.top].name}/{book.relative}".rpartition("/")[0]
