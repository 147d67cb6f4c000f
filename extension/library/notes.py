"""The notes on all files, read once and again when they have changed, and the names of what lies beside a file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from lora_runtime.catalog import Entry

from . import sidecar
from .index import Book, Index
from .listing import Listing
from .sidecar import Sidecar

__all__ = ["Notes"]


class Notes:
    """The notes on the files of a listing."""

    def __init__(self, listing: Listing) -> None:
        self._listing = listing
        self._known: dict[Path, tuple[int, Sidecar]] = {}
        self._neighbours: dict[Path, tuple[int, frozenset[str]]] = {}
        self._read_for: Index | None = None  # for whose files all were looked at

    def forget(self) -> None:
        """Look at all of them again; those that have not changed are not read again."""
        with self._listing.lock:
            self._read_for = None
            self._neighbours.clear()  # some network folders keep their time when a picture comes

    def of(self, entry: Entry) -> Sidecar:
        """Return the notes on a file as they are now; read again only when the .json has changed."""
        path = entry.path
        try:
            stamp = sidecar.sidecar_path(path).stat().st_mtime_ns
        except OSError:
            with self._listing.lock:
                self._known.pop(path, None)
            return Sidecar()
        with self._listing.lock:
            known = self._known.get(path)
        if known is not None and known[0] == stamp:
            return known[1]
        notes = sidecar.read(path)
        with self._listing.lock:
            self._known[path] = stamp, notes
        return notes

    def write(self, entry: Entry, notes: Sidecar) -> None:
        """Write the notes on a file; raises OSError."""
        sidecar.write(entry.path, notes)
        with self._listing.lock:
            self._known.pop(entry.path, None)
        self.of(entry)

    def all(self) -> Mapping[Path, Sidecar]:
        """Return the notes by file, for those that have any, as they were at the last refresh or have been seen since.

        Call it under the listing's lock.
        """
        index = self._listing.index()
        if self._read_for is not index:
            self._read_all(index)
            self._read_for = index
        return {path: notes for path, (_, notes) in self._known.items()}

    def neighbours(self, entry: Entry) -> frozenset[str]:
        """Return the names of all files in the folder of a file, as they are now."""
        folder = entry.path.parent
        try:
            stamp = folder.stat().st_mtime_ns
            known = self._neighbours.get(folder)
            if known is None or known[0] != stamp:
                known = stamp, frozenset(path.name for path in folder.iterdir())
                self._neighbours[folder] = known
        except OSError:
            return frozenset()
        return known[1]

    def _read_all(self, index: Index) -> None:
        """Read the notes that were not read yet, or are newer than when they were."""
        folders: dict[Path, list[Book]] = {}
        for book in index.books:
            folders.setdefault(book.entry.path.parent, []).append(book)
        for folder, books in folders.items():
            stamps = _json_files(folder)
            for book in books:
                path = book.entry.path
                stamp = stamps.get(f"{path.stem}.json")
                if stamp is None:
                    self._known.pop(path, None)
                    continue
                known = self._known.get(path)
                if known is None or known[0] != stamp:
                    self._known[path] = stamp, sidecar.read(path)


def _json_files(folder: Path) -> dict[str, int]:
    """Return the .json files of a folder with their mtime in ns."""
    found = {}
    try:
        with os.scandir(folder) as listing:
            for item in listing:
                if item.name.endswith(".json"):
                    found[item.name] = item.stat().st_mtime_ns
    except OSError:
        pass
    return found
