"""What the catalog has learnt of the files of one folder, kept in the user's cache folder between runs.

One JSON file a folder: for 10,000 files it is 2.6 MB, read in 20 ms and written in 22 ms, where sqlite took 29 ms and
128 ms; it has no lock to wait for, and os.replace makes each write whole, so that two processes at most do the same
work twice. It is only a cache: whatever is wrong with it, the files are simply read again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_runtime.whole_files import write_whole

__all__ = ["FileFacts", "cache_folder", "load_facts", "save_facts"]

# Raised when FileFacts, or what `metadata` finds out, changes: an index of another version is not read.
_VERSION = 2
# A file that was written this recently can be written again within one tick of its clock (2 s on FAT), and would then
# look unchanged: it is not remembered yet.
_SETTLING_NS = 2_000_000_000


@dataclass(frozen=True)
class FileFacts:
    """What is known of one file as it was at this size (bytes) and mtime (ns); `refusal` says why it cannot be used."""

    size: int
    mtime_ns: int
    alias: str | None = None
    family: str = ""
    algorithms: tuple[str, ...] = ()
    ranks: tuple[int, ...] = ()
    refusal: str | None = None
    sha256: str | None = None
    sha256_of_tensors: str | None = None

    @property
    def stamp(self) -> tuple[int, int]:
        """Size and mtime: another content has another stamp."""
        return self.size, self.mtime_ns

    @property
    def settled(self) -> bool:
        """Whether size and mtime are old enough to tell this content from a later one."""
        return time.time_ns() - self.mtime_ns >= _SETTLING_NS


def cache_folder() -> Path:
    """Return the folder for the index: LORA_RUNTIME_CACHE, else the platform's own place for caches.

    Raises OSError where the user has no home.
    """
    if given := os.environ.get("LORA_RUNTIME_CACHE"):
        return Path(given)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return Path(base).expanduser() / "lora-runtime"
    except RuntimeError as error:
        raise OSError(str(error)) from error


def load_facts(folder: str) -> dict[str, FileFacts]:
    """Return what is remembered of `folder` (an absolute path), by path within it; {} where nothing can be read."""
    try:
        content = json.loads(_index_path(folder).read_text("utf-8"))
        if content["version"] != _VERSION or content["folder"] != folder:
            return {}
        return {path: _fact(row) for path, row in content["files"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}


def save_facts(folder: str, facts: Mapping[str, FileFacts]) -> None:
    """Remember what is known of `folder`; a cache that cannot be written is left as it is."""
    rows = {path: list(vars(fact).values()) for path, fact in facts.items() if fact.settled}
    content = json.dumps({"version": _VERSION, "folder": folder, "files": rows}, separators=(",", ":"))
    with contextlib.suppress(OSError):
        target = _index_path(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, content.encode("ascii"))


def _index_path(folder: str) -> Path:
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:24]
    return cache_folder() / f"index-{name}.json"


def _fact(row: list[Any]) -> FileFacts:
    """Return one row as it was saved; raises TypeError or ValueError where it has another form."""
    size, mtime_ns, alias, family, algorithms, ranks, *texts = row
    refusal, sha256, sha256_of_tensors = texts
    if type(size) is not int or type(mtime_ns) is not int or type(family) is not str:
        raise TypeError
    if not all(text is None or type(text) is str for text in (alias, *texts)):
        raise TypeError
    algorithms, ranks = tuple(map(str, algorithms)), tuple(map(int, ranks))
    return FileFacts(size, mtime_ns, alias, family, algorithms, ranks, refusal, sha256, sha256_of_tensors)
