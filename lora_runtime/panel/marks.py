"""Favourites, and when a file was used last: one small JSON beside the caches, for all pages of one user.

A file is known there by the hash of its content where that is known, else by its path: one that is renamed keeps its
star, by `moved` at once, and by hand as soon as its hash is known again. Two copies of one file share theirs.

Who writes has the file for itself, among threads and processes. A file that cannot be read is kept aside, and one of a
newer version stays as it is.
"""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

from lora_runtime.file_index import cache_folder
from lora_runtime.whole_files import write_whole

__all__ = ["Mark", "Marks", "Seen"]

_VERSION = 1
_NAME = "marks.json"
_LATEST = 1e11  # seconds: no date of ours
_SECONDS_IN_LINE = 10.0  # for another process, which writes for some milliseconds
_SAME_USE = 60.0  # seconds in which a file that is used again is not written down again: a batch has many passes


@dataclass(frozen=True)
class Mark:
    """What is kept of one file; `used` is a Unix time, 0 for never, `sha256` of the whole file, "" where unknown.

    `path` is "" where another file has its place by now: its hash alone tells.
    """

    path: str = ""
    sha256: str = ""
    favourite: bool = False
    used: float = 0.0


class Seen:
    """The marks at one moment."""

    def __init__(self, marks: Iterable[Mark] = ()) -> None:
        self.all = list(marks)
        self._by_hash = {mark.sha256: mark for mark in self.all if mark.sha256}
        self._by_path = {mark.path: mark for mark in self.all}

    def of(self, path: Path, sha256: str = "") -> Mark:
        """Return what is kept of a file, nothing where another content had its path."""
        if sha256 and (found := self._by_hash.get(sha256)) is not None:
            return found
        found = self._by_path.get(_key(path))
        if found is None or (sha256 and found.sha256 and found.sha256 != sha256):
            return Mark()
        return found


class Marks:
    """The marks of a user's files. Safe to use from several threads; another process's marks are seen and kept."""

    def __init__(self, path: Path | None = None) -> None:
        """Keep them in a file, that in the cache folder unless told otherwise."""
        self._given = path
        self._lock = threading.Lock()
        self._seen = Seen()
        self._stamp: tuple[str, int, int] | None = None

    @property
    def path(self) -> Path:
        """The file that they are kept in; raises OSError where the user has no home."""
        return self._given or cache_folder() / _NAME

    def seen(self) -> Seen:
        """Return the marks as they are now; none where they cannot be read."""
        with self._lock:
            with suppress(OSError):
                self._read()
            return self._seen

    def star(self, path: Path, sha256: str, favourite: bool) -> None:
        """Make a file a favourite, or no more; raises OSError where that cannot be written."""
        self._change([(path, sha256)], lambda mark: replace(mark, favourite=favourite))

    def use(self, files: Iterable[tuple[Path, str]], now: float | None = None) -> None:
        """Write down that files, each with its hash or "", are used now; raises OSError where it cannot be written."""
        when = time.time() if now is None else now
        seen = self.seen()
        fresh = [file for file in files if abs(when - seen.of(*file).used) >= _SAME_USE]
        if fresh:
            self._change(fresh, lambda mark: replace(mark, used=round(when, 3)))

    def moved(self, old: Path, new: Path) -> None:
        """Keep the mark of a file that has another path now; raises OSError where that cannot be written.

        What had that path before has its mark by its hash alone, or none: the two are not one file.
        """
        before, after = _key(old), _key(new)
        if before == after or not any(mark.path in (before, after) for mark in self.seen().all):
            return
        with self._writing() as marks:
            mine = marks.of(old)
            kept = _without(marks, mine, after)
            self._write([*kept, replace(mine, path=after)] if mine != Mark() else kept)

    def _change(self, files: Iterable[tuple[Path, str]], change: Callable[[Mark], Mark]) -> None:
        with self._writing() as marks:
            made = list(marks.all)
            for path, sha256 in dict(files).items():
                before = marks.of(path, sha256)
                after = change(before if before != Mark() else Mark(_key(path)))
                if sha256:
                    after = replace(after, sha256=sha256, path=_key(path))
                made = [*_without(Seen(made), before, after.path), after]
            self._write(made)

    @contextmanager
    def _writing(self) -> Iterator[Seen]:
        """Have the file alone, and give what is in it now; raises OSError where it is not to be written."""
        from filelock import FileLock, Timeout  # which torch brings along

        with self._lock:
            path = self.path
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path.with_name(f".{path.name}.lock"))
            try:
                lock.acquire(timeout=_SECONDS_IN_LINE, poll_interval=0.01)
            except Timeout as error:
                raise OSError(errno.EAGAIN, "another program is writing it; try again", str(path)) from error
            except NotImplementedError:  # some network folders have no locks: the last who writes has the word
                pass
            try:
                self._stamp = None  # the clock of a file may tick slowly: it is read, not guessed
                self._read(to_write=True)
                yield self._seen
            finally:
                lock.release()

    def _read(self, to_write: bool = False) -> None:
        """Read the file if it has changed; one that is broken is moved aside before another is written."""
        path = self.path
        try:
            status = path.stat()
        except FileNotFoundError:
            self._seen, self._stamp = Seen(), None
            return
        stamp = str(path), status.st_size, status.st_mtime_ns
        if stamp == self._stamp:
            return
        self._seen, self._stamp = Seen(), None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            version, rows = content["version"], content["files"] if content["version"] == _VERSION else ()
            if not isinstance(version, int) or version < _VERSION:
                raise ValueError
            self._seen, self._stamp = Seen(filter(None, map(_mark, rows))), stamp
        except (ValueError, TypeError, KeyError, RecursionError):
            if to_write:
                path.replace(_aside(path))
        else:
            if to_write and version > _VERSION:
                said = "a newer version of lora_runtime has written it, and nothing of it is changed; update this one"
                raise OSError(errno.EPERM, said, str(path))

    def _write(self, marks: Iterable[Mark]) -> None:
        seen = Seen(mark for mark in marks if mark.favourite or mark.used)
        content = json.dumps({"version": _VERSION, "files": [vars(mark) for mark in seen.all]}, indent=0)
        write_whole(self.path, content.encode())
        self._seen, self._stamp = seen, None  # read once more: the clock of a file may tick slowly


def _without(marks: Seen, mine: Mark, path: str) -> list[Mark]:
    """Return the other marks; what another content had at this path is told by its hash alone from now on, or gone."""
    others = [mark for mark in marks.all if mark is not mine]
    return [
        replace(mark, path="") if mark.path == path else mark for mark in others if mark.path != path or mark.sha256
    ]


def _aside(path: Path) -> Path:
    """Return where a broken file is kept: nobody knows what is in it, so none takes the place of another."""
    names = (path.with_name(f"{path.name}.broken{number or ''}") for number in count())
    return next(name for name in names if not os.path.lexists(name))


def _key(path: Path) -> str:
    """Return a path as it is kept; half of a character, which a name on Linux may have, stays one in JSON."""
    return os.path.normcase(os.path.abspath(path))  # noqa: PTH100 -- a link keeps its own name


def _mark(row: Any) -> Mark | None:
    """Return one row as it was written, None where it is none."""
    if not isinstance(row, dict):
        return None
    path, sha256, used = row.get("path"), row.get("sha256"), row.get("used")
    path, sha256 = path if isinstance(path, str) else "", sha256 if isinstance(sha256, str) else ""
    if not path and not sha256:
        return None
    when = float(used) if isinstance(used, (int, float)) and 0 < used < _LATEST else 0.0
    return Mark(path, sha256, row.get("favourite") is True, when)
