"""What lies beside a LoRA file under its name: pictures, films, notes, and what other programs wrote of it.

A file belongs to `ink.safetensors` where it is called `ink.` and more, and no other LoRA there has more of its name:
`ink.v2.png` is that of `ink.v2.safetensors` where there is one, and of `ink.safetensors` where there is not.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from lora_runtime.catalog import Entry
from lora_runtime.errors import LoraError
from lora_runtime.folder import SUFFIX
from lora_runtime.header import read_header
from lora_runtime.metadata import trigger_words
from lora_runtime.sets import SUFFIX as SET_SUFFIX
from lora_runtime.whole_files import read_plain

__all__ = [
    "FILMS",
    "PICTURES",
    "Origin",
    "film_beside",
    "has_words",
    "origin_of",
    "owned",
    "picture_beside",
    "words_of",
]

PICTURES = ("png", "jpg", "jpeg", "webp")
FILMS = {"mp4": "video/mp4", "webm": "video/webm"}
_SITE = "https://civitai.com/models/"
_MOST_BYTES = 4 << 20  # of a side-car: it may tell of a hundred pictures
_MOST_WORDS = 20
_LONGEST_WORD = 300
# Where each program writes it: the ending, the table within, the keys of the words, of the model and of its version.
_KINDS = (
    (".civitai.info", "", "trainedWords", "modelId", "id"),
    (".metadata.json", "civitai", "trainedWords", "modelId", "id"),
    (".cm-info.json", "", "TrainedWords", "ModelId", "VersionId"),
)


@dataclass(frozen=True)
class Origin:
    """What side-cars tell: `words` that its maker gives for it, and `page`, the address of the model's page, or ""."""

    words: tuple[str, ...] = ()
    page: str = ""


def owned(stem: str, names: Iterable[str]) -> list[str]:
    """Return those of the files in a folder that belong to the LoRA with this stem, its own file left out."""
    listed = list(names)
    stems = {_norm(name[: -len(SUFFIX)]) for name in listed if _is_lora(name)} | {_norm(stem)}
    return [name for name in listed if not _is_lora(name) and _owner(name, stems) == _norm(stem)]


def _owner(name: str, stems: Collection[str]) -> str:
    """Return the longest stem that a name begins with, up to a dot; "" for none."""
    # A set is no LoRA's: its name is its own.
    parts = [] if name.endswith(SET_SUFFIX) else _norm(name).split(".")
    found = (".".join(parts[:count]) for count in range(len(parts) - 1, 0, -1))
    return next((stem for stem in found if stem in stems), "")


def _is_lora(name: str) -> bool:
    return name.lower().endswith(SUFFIX)


def _norm(name: str) -> str:
    """Return a name as this system compares it."""
    return os.path.normcase(name)


# --- what they tell ---------------------------------------------------------------------------------------------------


def origin_of(path: Path, names: Collection[str] | None = None) -> Origin:
    """Return what the side-cars of a LoRA file tell; nothing is fetched, and what cannot be read is left out.

    `names`, where given, are the files of the folder as listed before.
    """
    words: tuple[str, ...] = ()
    page = ""
    for ending, *keys in _KINDS:
        name = path.stem + ending
        if names is not None and name not in names:
            continue
        beside = path.with_name(name)
        try:
            status = beside.stat()
        except OSError:
            continue
        found = _told(beside, status.st_mtime_ns, status.st_size, *keys)
        words, page = words or found.words, page or found.page
    return Origin(words, page)


@lru_cache(maxsize=16384)
def _told(path: Path, mtime_ns: int, size: int, table: str, words: str, model: str, version: str) -> Origin:
    try:
        content = json.loads(read_plain(path, _MOST_BYTES).decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return Origin()
    if isinstance(content, dict) and table:
        content = content.get(table)
    if not isinstance(content, dict):
        return Origin()
    return Origin(tuple(_words(content.get(words))), _page(content.get(model), content.get(version)))


def _words(given: Any) -> Iterator[str]:
    """Yield the words of a list, cut at its commas as a prompt has them."""
    listed = [word for word in given if isinstance(word, str)] if isinstance(given, list) else []
    words = dict.fromkeys(part.strip() for word in listed for part in word.split(","))
    yield from [word for word in words if word and len(word) <= _LONGEST_WORD and word.isprintable()][:_MOST_WORDS]


def _page(model: Any, version: Any) -> str:
    """Return the address of a page. Only numbers come from the file: it can lead to no other site."""
    if not _is_number(model):
        return ""
    return f"{_SITE}{model}" + (f"?modelVersionId={version}" if _is_number(version) else "")


def _is_number(value: Any) -> bool:
    return type(value) is int and 0 < value < 1 << 53


def words_of(entry: Entry, names: Collection[str] | None = None) -> tuple[str, ...]:
    """Return the words that a file was trained with: what its maker says beside it, else what its metadata tell."""
    return origin_of(entry.path, names).words or _in_metadata(entry.path, entry.stamp)


@lru_cache(maxsize=16384)
def _in_metadata(path: Path, _: tuple[int, int]) -> tuple[str, ...]:
    try:
        return trigger_words(read_header(path).metadata)
    except LoraError:  # gone by now: who applies it will say so
        return ()


def has_words(entry: Entry, wanted: Iterable[str]) -> bool:
    """Return whether a file has all of these words, in lower case, in its path, alias or family, in any order."""
    text = f"{entry.relative}\n{entry.alias or ''}\n{entry.family}".casefold()
    return all(word in text for word in wanted)


# --- pictures and films -----------------------------------------------------------------------------------------------


def picture_beside(path: Path, names: Collection[str] | None = None) -> Path | None:
    """Return the picture of a LoRA file, `ink.png` or `ink.preview.png`; `names` as in `origin_of`."""
    return _beside(path, PICTURES, names)


def film_beside(path: Path, names: Collection[str] | None = None) -> Path | None:
    """Return the film of a LoRA file, `ink.mp4` or `ink.preview.mp4`; `names` as in `origin_of`."""
    return _beside(path, FILMS, names)


def _beside(path: Path, endings: Iterable[str], names: Collection[str] | None) -> Path | None:
    for dot in (".", ".preview."):
        for ending in endings:
            name = f"{path.stem}{dot}{ending}"
            if name in names if names is not None else path.with_name(name).is_file():
                return path.with_name(name)
    return None
