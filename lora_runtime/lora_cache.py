"""LoRA files in memory, so that a change of strength reads nothing from disk."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Set
from dataclasses import replace
from pathlib import Path

from lora_runtime.adapters.training import CONFIG_NAME
from lora_runtime.lora import Lora, load_lora

__all__ = ["LoraCache"]

_Stamp = tuple[tuple[int, ...] | None, ...]


class LoraCache:
    """The files loaded last, up to a limit in bytes; a file that was written since is read again.

    A copy of a file, under whatever name, shares its tensors: it is known by its content.
    """

    def __init__(self, limit: int = 1 << 30, files: int | None = None) -> None:
        """Hold at most `limit` bytes of tensors and `files` files, and always the file asked for last."""
        self.limit = limit
        self.files = files
        self.reads = 0  # files that were read, one that was read twice counted twice
        self._loras: OrderedDict[Path, tuple[_Stamp, Lora]] = OrderedDict()
        self._lock = threading.Lock()

    def load(self, path: Path, *, name: str | None = None, trim: bool = True) -> Lora:
        """Return the file's adapters; raises as `load_lora` does. Without `trim` nothing is dropped for it."""
        with self._lock:
            stamp = _stamp(path)
            known = self._loras.get(path)
            if known is None or known[0] != stamp:
                self._loras.pop(path, None)
                self.reads += 1
                known = self._loras[path] = stamp, self._shared(load_lora(path, name=name))
            self._loras.move_to_end(path)
            if trim:
                self._trim({path})
            return known[1]

    def trim(self, *, keep: Set[Path] = frozenset()) -> None:
        """Drop the files used longest ago until the rest fit, but none of those to keep."""
        with self._lock:
            self._trim(keep)

    def clear(self) -> None:
        """Drop all files."""
        with self._lock:
            self._loras.clear()

    def _shared(self, lora: Lora) -> Lora:
        """Return a file just read with the tensors of one of the same content, where there is one."""
        # To ask for a hash may be to wait for it.
        alike = (known for _, known in self._loras.values() if known.nbytes == lora.nbytes)
        same = next((known for known in alike if known.sha256 == lora.sha256), None)
        return lora if same is None else replace(same, name=lora.name, path=lora.path)

    def _trim(self, keep: Set[Path]) -> None:
        most = len(self._loras) if self.files is None else self.files
        for path in [path for path in self._loras if path not in keep]:
            if self._size() <= self.limit and len(self._loras) <= most:
                return
            del self._loras[path]

    def _size(self) -> int:
        return sum({id(lora.adapters): lora.nbytes for _, lora in self._loras.values()}.values())


def _stamp(path: Path) -> _Stamp:
    """Return what changes when a file, or what PEFT wrote beside it, is written again."""
    found: list[tuple[int, ...] | None] = []
    for each in (path, path.with_name(CONFIG_NAME)):
        try:
            status = each.stat()
        except OSError:
            found.append(None)
        else:
            # The last tells of a file that was written anew in place and given its old date, as some copies are.
            found.append((status.st_size, status.st_mtime_ns, status.st_ino, status.st_ctime_ns))
    return tuple(found)
