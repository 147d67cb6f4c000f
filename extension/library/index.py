"""The files at one moment, each under a name that means it alone, in the order of the WebUI's walk through folders."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lora_runtime.catalog import Entry

from ..whole import is_whole
from .roots import Root
from .sidecar import Sidecar

__all__ = ["Book", "Index", "composed", "natural"]

_DIGITS = re.compile(r"([0-9]+)")


class Book:
    """A file with what the shelf knows of it; `relative` is its path in the user's folder, with "/" and no suffix."""

    __slots__ = ("_created", "_haystack", "entry", "hidden", "name", "relative", "top")

    def __init__(self, entry: Entry, root: Root) -> None:
        self.entry = entry
        self.top = root.top
        self.relative = f"{root.place}/{entry.relative}" if root.place else entry.relative
        self.hidden = self.relative.startswith(".") or "/." in self.relative
        self.name = entry.name
        self._created: float | None = None
        self._haystack: tuple[Sidecar | None, str] | None = None

    @property
    def created(self) -> float:
        """When the file came to its place, as far as the system tells."""
        if self._created is None:
            try:
                status = self.entry.path.stat()
            except OSError:
                return 0.0
            self._created = float(getattr(status, "st_birthtime", status.st_ctime))
        return self._created

    def haystack(self, notes: Sidecar | None) -> str:
        """Return all that is searched, in lower case."""
        if self._haystack is None or self._haystack[0] is not notes:
            parts = [self.relative, self.entry.alias or ""]
            if notes:
                parts += [notes.description, notes.activation_text]
            self._haystack = notes, "\n".join(parts).casefold()
        return self._haystack[1]


class Index:
    """All files at one moment."""

    def __init__(self, entries: tuple[Entry, ...], roots: Mapping[Path, Root], tops: Sequence[Path]) -> None:
        self.entries = entries
        # By path: a folder within another of the given ones would list its files twice.
        books = {entry.path: Book(entry, roots[entry.folder]) for entry in entries}
        self.nameless = [book for book in books.values() if not is_whole(book.relative)]
        usable = (book for book in books.values() if is_whole(book.relative))
        self.books = sorted(usable, key=lambda book: (book.top, *_walk_key(book.relative)))
        self.by_stem: dict[str, list[Book]] = {}
        for book in self.books:
            self.by_stem.setdefault(composed(book.entry.name), []).append(book)
        for book in self.books:  # a file that goes by its folder's name is known to the WebUI by its own
            self.by_stem.setdefault(composed(book.entry.path.stem), [book])
        self._name_all(tops)
        self.by_name = {composed(book.name): book for book in self.books}
        self.by_path = {book.entry.path: book for book in self.books}
        names = {book: {book.entry.name.casefold(), (book.entry.alias or "").casefold()} for book in self.books}
        self.holders = Counter(name for own in names.values() for name in own)

    def _name_all(self, tops: Sequence[Path]) -> None:
        """Give every book the shortest name that means it alone."""
        paths = Counter(book.relative for book in self.books)
        for book in self.books:
            if len(self.by_stem[composed(book.entry.name)]) == 1:
                continue
            if paths[book.relative] > 1:
                book.name = f"{tops[book.top].name}/{book.relative}"
            else:
                # Of `ink` and `style/ink`, the first has no path that differs from the stem they share.
                book.name = book.relative if "/" in book.relative else f"./{book.relative}"
        taken: set[str] = set()
        for book in self.books:
            # Two given folders of the same name, or a folder called like another's path.
            while composed(book.name) in taken:
                book.name = f"./{book.name}"
            taken.add(composed(book.name))


def composed(text: str) -> str:
    """Return the text with accents composed: macOS hands out file names decomposed, keyboards write them composed."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def natural(text: str) -> list[tuple[int, str]]:
    """Return a sort key in which `ink 9` comes before `ink 10`."""
    # Each piece is a pair, so that a number never meets a text; digits sort before letters.
    return [
        (int(piece[:18]), piece) if odd else (-1, piece.lower())
        for piece, odd in zip(_DIGITS.split(text), _alternating(), strict=False)
    ]


def _alternating() -> Iterator[bool]:
    while True:
        yield False
        yield True


@functools.lru_cache(maxsize=1 << 16)
def _walk_key(relative: str) -> tuple[list[tuple[int, str]], list[tuple[int, str]]]:
    """Return the sort key of a walk through the folders: a folder's own files come before those of folders in it."""
    folder, _, name = relative.rpartition("/")
    return natural(folder), natural(name)
