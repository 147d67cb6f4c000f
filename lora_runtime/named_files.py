"""LoRA files that a caller gives a name: {"ink": "D:/downloads/ink_v3_final.safetensors"}, wherever they lie.

What a prompt names stays within folders; a path outside of them comes from the program that calls.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from lora_runtime.folder import SUFFIX, Entry, Refusal, entry_of, stamp_of
from lora_runtime.header import Hashes, hashes

__all__ = ["NamedFiles"]


class NamedFiles:
    """Files by the names that a caller gives them; remembers what it has read of each while it is unchanged."""

    def __init__(self, files: Mapping[str, str | os.PathLike[str]]) -> None:
        """Take the files; reads nothing, and one that is not there is no error yet."""
        self.files = {name: Path(path) for name, path in files.items()}
        self._entries: dict[str, Entry] = {}
        self._hashes: dict[tuple[Path, tuple[int, int]], Hashes] = {}

    def scan(self) -> tuple[list[Entry], dict[str, Refusal]]:
        """Return what is there now, and by name what cannot be used."""
        found: list[Entry] = []
        refused: dict[str, Refusal] = {}
        for name, path in self.files.items():
            known = self._entries.get(name)
            read = known if known is not None and self.unchanged(known) else _entry(name, path)
            if isinstance(read, Refusal):
                self._entries.pop(name, None)
                refused[name] = read
            else:
                self._entries[name] = read
                found.append(read)
        return found, refused

    def unchanged(self, entry: Entry) -> bool:
        """Return whether the file is still as it was when it was looked at."""
        return stamp_of(entry.path) == entry.stamp

    def owns(self, entry: Entry) -> bool:
        """Return whether an entry is one of these."""
        return self._entries.get(entry.relative) == entry

    def known_hashes(self, entry: Entry) -> Hashes | None:
        """Return the hashes of the file as it was when it was looked at, if they were computed before."""
        return self._hashes.get((entry.path, entry.stamp))

    def hashes(self, entry: Entry) -> Hashes:
        """Return the hashes of the file as it is now; raises LoraFileError."""
        known = self.known_hashes(entry)
        if known is not None and self.unchanged(entry):
            return known
        found = hashes(entry.path)
        if self.unchanged(entry):
            self._hashes[entry.path, entry.stamp] = found
        return found


def _entry(name: str, path: Path) -> Entry | Refusal:
    """Return what is known of a file, or why it cannot be used."""
    if path.is_dir():
        return Refusal(path, f"this is a folder; give the {SUFFIX} file in it")
    stamp = stamp_of(path)
    if stamp is None:
        return Refusal(path, "there is no such file; correct the path")
    return entry_of(name, path, stamp)
