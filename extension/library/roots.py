"""The folders that are listed: the user's own, and in them the hidden and the linked ones.

The catalog leaves both out: a hidden folder may be a tool's, and a link may lead a stranger's prompt out. Here the user
has put them into the WebUI's own folder, where they have always counted.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath

from lora_runtime.panel.moving import BIN

__all__ = ["Root", "find_roots"]

# A linked folder whose last file is in its bin stays a folder: else nobody would find the bin.
_SUFFIXES = (".safetensors", ".safetensors.binned")


@dataclass(frozen=True)
class Root:
    """One folder of the catalog: `place` is where it lies in the folder `top` of the user, "" for that itself."""

    path: Path
    top: int
    place: str


def find_roots(folders: Iterable[Path]) -> tuple[Root, ...]:
    """Return the folders for the catalog: those given that are there, and in them the hidden and the linked ones."""
    given = [folder for folder in folders if folder.is_dir()]
    found: list[Root] = []
    entered = {os.path.realpath(folder) for folder in given}
    for top, folder in enumerate(folders):
        if folder in given:
            found.append(Root(folder, top, ""))
            _add_further(folder, "", top, entered, found)
    return tuple(found)


def _add_further(folder: Path, place: str, top: int, entered: set[str], found: list[Root]) -> None:
    """Add the hidden and linked folders at any depth that hold LoRA files."""
    waiting = [(folder, place, os.path.realpath(folder))]
    while waiting:
        here, place, real = waiting.pop()
        try:
            with os.scandir(here) as listing:
                inside = (item for item in listing if _is_folder(item) and item.name != BIN)
                folders = sorted(inside, key=lambda item: item.name)
        except OSError:
            continue
        for item in folders:
            path, below = here / item.name, f"{place}/{item.name}" if place else item.name
            target = os.path.realpath(item.path)
            linked = target != os.path.join(real, item.name)  # noqa: PTH118 -- compares texts of real paths
            if linked and (_holds(target, entered) or any(_holds(known, {target}) for known in entered)):
                continue  # listed at its own place; or it leads to a folder above, which would be endless
            if (linked or item.name.startswith(".")) and _has_files(path):
                entered.add(target)
                found.append(Root(path, top, below))
            waiting.append((path, below, target))


def _holds(path: str, folders: Iterable[str]) -> bool:
    return any(PurePath(path).is_relative_to(folder) for folder in folders)


def _has_files(folder: Path) -> bool:
    """Return whether there is a LoRA file at any depth, links aside."""
    return any(name.lower().endswith(_SUFFIXES) for _, _, names in os.walk(folder) for name in names)


def _is_folder(item: os.DirEntry[str]) -> bool:
    try:
        return item.is_dir()
    except OSError:  # a link to itself
        return False
