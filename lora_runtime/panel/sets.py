"""Rows under a name: the sets of `lora_runtime.sets`, as the panel asks for them.

GET  base/sets         –               all_sets(folders)
POST base/save-set     {name, text}    keep_set(folders, name, text)
POST base/delete-set   {name}          drop_set(folders, name)

Each answers with the sets as they are then. What cannot be done raises CatalogError or OSError.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_runtime.errors import CatalogError
from lora_runtime.sets import delete_set, read_sets, write_set

__all__ = ["all_sets", "drop_set", "keep_set"]

_Folders = Sequence[str | os.PathLike[str]]


def all_sets(folders: _Folders) -> dict[str, Any]:
    """Return {"sets": [{"name", "text"}, …]}, by name; of a name that several folders have the first's."""
    found = read_sets(*_there(folders))
    return {"sets": [{"name": name, "text": found[name].strip()} for name in sorted(found, key=str.casefold)]}


def keep_set(folders: _Folders, name: object, text: object) -> dict[str, Any]:
    """Write a set into the first folder, in place of one of that name."""
    there = _there(folders)
    if not there:
        raise CatalogError("there is no folder of LoRAs that a set could be written to; make one")
    if not isinstance(name, str) or not isinstance(text, str):
        raise CatalogError("a set is a name and the text of its tags")
    write_set(there[0], name, text)
    return all_sets(folders)


def drop_set(folders: _Folders, name: object) -> dict[str, Any]:
    """Delete the set of that name which counts: that of the first folder which has one."""
    if not isinstance(name, str):
        raise CatalogError("a set is deleted by its name")
    there = _there(folders)
    holder = next((folder for folder in there if name in read_sets(folder)), None)
    if holder is None and not there:
        raise CatalogError("there is no folder of LoRAs, and no set")
    delete_set(there[0] if holder is None else holder, name)
    return all_sets(folders)


def _there(folders: _Folders) -> list[Path]:
    return [Path(folder) for folder in folders if Path(folder).is_dir()]
