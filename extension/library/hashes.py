"""The hashes of files: SHA-256 of the whole file, as it is shared, and of its tensors alone, as the WebUI shows it.

A file is read for its hash once; both are remembered beside the folder, as long as the file is unchanged.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

from lora_runtime.catalog import Entry
from lora_runtime.errors import LoraError, LoraFileError
from lora_runtime.file_index import load_facts

from .listing import Listing
from .patience import Patience

__all__ = ["SHOWN_DIGITS", "Hashes", "is_hash"]

SHOWN_DIGITS = 12
_HASH = re.compile(r"[0-9a-f]{8,64}")
# SHA-256 of nothing: files without tensors have it in common, and it names none of them.
_HASH_OF_NOTHING = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def is_hash(digits: str) -> bool:
    """Return whether a text may be a hash or its beginning: 8 to 64 hex digits in lower case."""
    return _HASH.fullmatch(digits) is not None


class Hashes:
    """The hashes of the files of a listing, as far as they are known, and found out where somebody has the patience."""

    def __init__(self, listing: Listing) -> None:
        self._listing = listing
        self._known: dict[Path, tuple[tuple[int, int], tuple[str, ...]]] | None = None

    def forget(self) -> None:
        """Look again at what is remembered beside the folders: other programs write there too."""
        with self._listing.lock:
            self._known = None

    def short(self, entry: Entry) -> str:
        """Return the first 12 digits of the SHA-256 of the tensors, as the WebUI shows it; raises LoraFileError."""
        return self._read(entry)[1][:SHOWN_DIGITS]

    def known(self, entry: Entry) -> tuple[str, ...]:
        """Return the whole file's hash and that of its tensors, if they were computed before for this content."""
        with self._listing.lock:
            if self._known is None:
                self._known = {}
                for root in self._listing.roots:
                    for key, fact in load_facts(os.path.realpath(root.path)).items():
                        if fact.sha256 and fact.sha256_of_tensors:
                            self._known[root.path / key] = fact.stamp, (fact.sha256, fact.sha256_of_tensors)
            stamp, known = self._known.get(entry.path, ((0, 0), ()))
            return known if stamp == entry.stamp else ()

    def known_short(self, entry: Entry) -> str:
        """Return what `short` would, if that needs no reading of the file, else ""."""
        known = self.known(entry)
        return known[-1][:SHOWN_DIGITS] if known else ""

    def known_sha256(self, entry: Entry, patience: Patience) -> str | None:
        """Return the SHA-256 of the whole file where it is known, or there is patience to read it; else None."""
        known = self.known(entry)
        if not known and patience.seconds_to_hash > 0:
            known = self._read_patiently(entry, patience)
        return known[0] if known else None

    def unknown(self) -> int:
        """Return of how many files no hash is known."""
        with self._listing.lock:
            return sum(not self.known(book.entry) for book in self._listing.index().books)

    def find(self, short: str, patience: Patience | None = None) -> Entry | None:
        """Return the file one of whose hashes begins with these 8 to 64 hex digits, or None.

        Files that were never hashed are, the small ones first, as long as there is patience: what was read is
        remembered, so that asking again goes further. Files without tensors are not found by the hash of nothing.
        """
        patience = patience or Patience()
        prefix = short.strip().lower()
        if not is_hash(prefix) or _HASH_OF_NOTHING.startswith(prefix):
            return None
        with self._listing.lock:
            unread = []
            for book in self._listing.index().books:
                known = self.known(book.entry)
                if any(digits.startswith(prefix) for digits in known):
                    return book.entry
                if not known:
                    unread.append(book.entry)
        # Without the lock: pictures and cards go on meanwhile.
        for entry in sorted(unread, key=lambda entry: entry.size):
            if patience.seconds_to_hash <= 0:
                break
            if any(digits.startswith(prefix) for digits in self._read_patiently(entry, patience)):
                return entry
        return None

    def _read(self, entry: Entry) -> tuple[str, str]:
        """Return the whole file's hash and that of its tensors. Not under the lock: pictures and cards go on."""
        try:
            found = self._listing.catalog.hashes(entry)
        except KeyError:
            raise LoraFileError(f"{entry.path}: its folder is none of the LoRA folders any more") from None
        digits = found.sha256, found.sha256_of_tensors
        with self._listing.lock:
            if self._known is not None:
                self._known[entry.path] = entry.stamp, digits
        return digits

    def _read_patiently(self, entry: Entry, patience: Patience) -> tuple[str, ...]:
        """Return the hashes, () for a file that is gone or changed; the time comes out of the patience."""
        began = time.monotonic()
        try:
            return self._read(entry)
        except LoraError:
            return ()
        finally:
            patience.seconds_to_hash -= time.monotonic() - began
