"""The LoRA files of the program: all its folders of the kind "loras", and what a tag calls each file."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path, PurePosixPath

import folder_paths

from ...engine.loading import Loader
from ...library.shelf import Shelf

__all__ = ["loader", "names", "tag_name"]

_KIND = "loras"
_SUFFIX = ".safetensors"


def loader() -> Loader:
    """Return what reads the files; folders can be added while the program starts."""
    return _loader(tuple(Path(folder) for folder in folder_paths.get_folder_paths(_KIND)))


@lru_cache(maxsize=1)
def _loader(folders: tuple[Path, ...]) -> Loader:
    return Loader(Shelf(folders))


def names() -> list[str]:
    """Return the files that can be chosen, as the program's own nodes call them: paths within their folders."""
    return [name for name in folder_paths.get_filename_list(_KIND) if name.lower().endswith(_SUFFIX)]


def tag_name(name: str) -> str:
    """Return what a tag calls a file that `names` calls so; where it is gone, its path, which a notice then names."""
    path = folder_paths.get_full_path(_KIND, name)
    shelf = loader().shelf
    if path is not None:
        wanted = Path(os.path.normpath(Path(path).absolute()))  # as the shelf has them
        if wanted not in shelf.paths():
            shelf.refresh()  # it is new
        for shown in shelf.names():
            entry = shelf.entry(shown)
            if entry is not None and entry.path == wanted:
                return shelf.tag_name(entry, prefer_alias=False)
    return PurePosixPath(name.replace("\\", "/")).with_suffix("").as_posix()
