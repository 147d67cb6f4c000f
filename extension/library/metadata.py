"""What trainers wrote into the files, read once for each content."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

from lora_runtime.catalog import Entry
from lora_runtime.errors import LoraError
from lora_runtime.header import read_header

__all__ = ["Metadata"]

_MOST_CHARACTERS = 64 << 20  # kept at once: a file may bring along pictures


class Metadata:
    """The metadata of files as texts; of those that were asked for last they are kept. Safe to use from threads."""

    def __init__(self, most_characters: int = _MOST_CHARACTERS) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[Path, tuple[tuple[int, int], Mapping[str, str], int]] = OrderedDict()
        self._most = most_characters
        self._characters = 0

    def of(self, entry: Entry) -> Mapping[str, str] | None:
        """Return the metadata of a file as it is now, None if it cannot be read."""
        try:
            status = entry.path.stat()  # before the header is read: what is written meanwhile is read the next time
        except OSError:
            return None
        stamp = status.st_size, status.st_mtime_ns
        with self._lock:
            known = self._kept.get(entry.path)
            if known is not None and known[0] == stamp:
                self._kept.move_to_end(entry.path)
                return known[1]
        try:
            found = dict(read_header(entry.path).metadata)
        except LoraError:
            return None
        self._keep(entry.path, stamp, found)
        return found

    def _keep(self, path: Path, stamp: tuple[int, int], found: Mapping[str, str]) -> None:
        size = sum(len(key) + len(text) for key, text in found.items())
        with self._lock:
            self._drop(path)
            self._kept[path] = stamp, found, size
            self._characters += size
            while self._characters > self._most:
                self._drop(next(iter(self._kept)))

    def _drop(self, path: Path) -> None:
        known = self._kept.pop(path, None)
        if known is not None:
            self._characters -= known[2]
