"""The user's folders as they were when they were looked through last."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from lora_runtime.catalog import LoraCatalog

from .index import Index
from .roots import Root, find_roots

__all__ = ["NAMELESS", "Listing"]

NAMELESS = "its name, or that of a folder that it is in, is not UTF-8, so that no prompt can have it; rename it"


class Listing:
    """The catalog of all folders, and the index of its files. `lock` is held while either of them is replaced."""

    def __init__(self, folders: Sequence[Path]) -> None:
        """Take the folders, the first ones first; those that are not there yet count from the next refresh on."""
        self.folders = tuple(dict.fromkeys(Path(os.path.normpath(folder.absolute())) for folder in folders))
        self.lock = threading.RLock()
        self.looked_at = 0.0  # when the folders were looked through last, as time.monotonic() has it
        self._roots: tuple[Root, ...] = ()
        self._catalog: LoraCatalog | None = None
        self._index: Index | None = None

    @property
    def catalog(self) -> LoraCatalog:
        """The catalog of all folders, those behind links and hidden ones too; another one when these have changed."""
        with self.lock:
            if self._catalog is None:
                self._open()
            assert self._catalog is not None
            return self._catalog

    @property
    def roots(self) -> tuple[Root, ...]:
        """The folders of the catalog."""
        with self.lock:
            if self._catalog is None:
                self._open()
            return self._roots

    def index(self) -> Index:
        """Return the index of what the catalog has now: it looks again by itself when a name is unknown."""
        with self.lock:
            entries = self.catalog.entries
            if self._index is None or self._index.entries is not entries:
                self._index = Index(entries, {root.path: root for root in self._roots}, self.folders)
            return self._index

    def refused(self) -> Mapping[Path, str]:
        """Return the files that are there and cannot be used, each with its reason."""
        with self.lock:
            index = self.index()
            # The catalog refuses a link out of its folder, which is entered here all the same.
            inside = {root.path for root in self._roots}
            found = {path: reason for path, reason in self.catalog.refused.items() if path not in inside}
            return {**found, **{book.entry.path: NAMELESS for book in index.nameless}}

    def refresh(self) -> None:
        """Look at the folders again; files that have not changed are not read again."""
        with self.lock:
            fresh = self._catalog is None
            self.looked_at = time.monotonic()
            self._open()
            if not fresh:
                self.catalog.refresh()

    def _open(self) -> None:
        """Make the catalog, or a new one where folders have come or gone."""
        roots = find_roots(self.folders)
        if self._catalog is None or roots != self._roots:
            self._roots = roots
            self.looked_at = time.monotonic()
            self._catalog = LoraCatalog(*(root.path for root in roots))
            self._index = None
