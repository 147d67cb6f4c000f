"""LoRA files renamed, moved, thrown away and brought back from a page: what to say, and what to ask for to undo it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from lora_runtime.catalog import Entry
from lora_runtime.errors import CatalogError, UnknownLoraError
from lora_runtime.panel.marks import Marks
from lora_runtime.panel.moving import binned, folders_in, move_lora, rename_lora, restore_lora, throw_away

__all__ = ["Files", "Filing"]

_OFF = "files are not changed from this page: a setting forbids it"


class Files(Protocol):
    """The files of a page, by the names that its cards have."""

    @property
    def marks(self) -> Marks:
        """The stars and dates of use."""
        ...

    @property
    def bins(self) -> Sequence[Path]:
        """The folders that may have a bin in them."""
        ...

    def entry(self, name: str) -> Entry | None:
        """Return the file of a card, None where it is gone."""
        ...

    def name_at(self, path: Path) -> str:
        """Return the name of the card of a file, "" where it has none."""
        ...


class Filing:
    """What may be done with the files of a page, where `allowed`; `refresh` is called after each change.

    Each answer is {"said", "name", "undo"}: what was done, the file's name by now, "" for none, and what to ask for
    that it is undone. Raises CatalogError or OSError where nothing was done.
    """

    def __init__(self, files: Files, refresh: Callable[[], None], allowed: Callable[[], bool]) -> None:
        self._files, self._refresh, self.allowed = files, refresh, allowed

    def do(self, action: object, given: Mapping[str, object]) -> dict[str, Any]:
        """Do "rename" (name, to), "move" (name, to), "bin" (name) or "restore" (token)."""
        if not self.allowed():
            raise CatalogError(_OFF)
        texts = {key: value for key, value in given.items() if isinstance(value, str)}
        if action == "restore" and "token" in texts:
            return self._restore(texts["token"])
        if action == "bin" and "name" in texts:
            return self._throw_away(self._entry(texts["name"]))
        if action in ("rename", "move") and {"name", "to"} <= set(texts):
            entry = self._entry(texts["name"])
            return self._rename(entry, texts["to"]) if action == "rename" else self._move(entry, texts["to"])
        raise CatalogError('asked for is "rename" or "move" with name and to, "bin" with name, or "restore" with token')

    def bin(self) -> list[dict[str, Any]]:
        """Return what is in the bins, the latest first: token, place, when it came there, and how many files it is."""
        found = binned(self._files.bins)
        return [{"token": one.token, "place": one.place, "when": one.when, "files": len(one.files)} for one in found]

    def folders(self, entry: Entry) -> dict[str, Any]:
        """Return the folders that a file can be moved to, "" for the outermost, and the one that it is in."""
        return {"folders": folders_in(entry.folder), "folder": entry.relative.rpartition("/")[0]}

    def _rename(self, entry: Entry, name: str) -> dict[str, Any]:
        now = self._moved(entry, rename_lora(entry.path, name))
        undo = {"action": "rename", "name": now, "to": entry.path.stem}
        return {"said": f"Renamed {entry.path.stem} to {name}.", "name": now, "undo": undo}

    def _move(self, entry: Entry, folder: str) -> dict[str, Any]:
        now = self._moved(entry, move_lora(entry.path, entry.folder, folder))
        undo = {"action": "move", "name": now, "to": entry.relative.rpartition("/")[0]}
        return {"said": f"Moved {entry.path.stem} to {folder or entry.folder.name}.", "name": now, "undo": undo}

    def _throw_away(self, entry: Entry) -> dict[str, Any]:
        thrown = throw_away(entry.path, entry.folder)
        self._refresh()
        more = len(thrown.files) - 1
        beside = f" with {more} {'file' if more == 1 else 'files'} beside it" if more else ""
        undo = {"action": "restore", "token": thrown.token}
        return {"said": f"Put {entry.path.stem}{beside} into the bin.", "name": "", "undo": undo}

    def _restore(self, token: str) -> dict[str, Any]:
        path = restore_lora(self._files.bins, token)
        self._refresh()
        now = self._name_at(path)
        return {"said": f"Put {path.stem} back.", "name": now, "undo": {"action": "bin", "name": now}}

    def _moved(self, entry: Entry, path: Path) -> str:
        """Return the name of a file that has another place now; its star goes along."""
        with suppress(OSError):  # the file is where it was asked to be, and its hash may still tell
            self._files.marks.moved(entry.path, path)
        self._refresh()
        return self._name_at(path)

    def _name_at(self, path: Path) -> str:
        return self._files.name_at(path) or path.stem

    def _entry(self, name: str) -> Entry:
        entry = self._files.entry(name)
        if entry is None:
            raise UnknownLoraError(f'there is no LoRA "{name}" any more; refresh the page', name)
        return entry
