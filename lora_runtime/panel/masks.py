"""The masks that are there: grey pictures in the folders of the LoRAs, and how one is shown over a picture.

GET base/masks             –    all_masks(folders)
GET base/mask?name=NAME         mask_shade(folders, NAME), a PNG

Only what is listed can be asked for, so no name leads out of the folders.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from lora_runtime.whole_files import read_plain

__all__ = ["all_masks", "mask_shade"]

Folders = Sequence[str | os.PathLike[str]]

_MOST = 300  # that a person looks through
_MOST_FILES = 20_000  # that are looked at for them
_DEEPEST = 4
_LARGEST = 64 << 20  # bytes of a file, and pixels of its picture: `lora_runtime.regions` reads no larger one
_SIDE = 512  # pixels of what is shown
_DARKEST = 0.65
_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
_UNTYPED = re.compile(r"[:<>=\x00-\x1f\ud800-\udfff]")  # what ends a field of a tag, or cannot be sent


def all_masks(folders: Folders) -> dict[str, Any]:
    """Return {"masks": [name, …]}: paths within the folders, as `mask=` has them; pictures of LoRAs are left out."""
    names = (name for folder in folders for name in _pictures(Path(folder)))
    return {"masks": sorted({*islice(names, _MOST)}, key=str.casefold)}


def mask_shade(folders: Folders, name: object) -> bytes | None:
    """Return a PNG, at most 512 pixels wide and high, that darkens what a mask leaves out; None where there is none."""
    if not isinstance(name, str) or name not in all_masks(folders)["masks"]:
        return None
    for folder in folders:
        path = Path(folder, name)
        try:
            status = path.stat()
        except OSError:  # in another of the folders
            continue
        return _shade(path, status.st_mtime_ns, status.st_size)
    return None


def _pictures(folder: Path) -> Iterator[str]:
    """Yield the pictures in a folder and those in it that are no LoRA's own; links to folders are not followed."""
    seen = 0
    for here, inner, files in os.walk(folder):
        depth = len(Path(here).relative_to(folder).parts)
        inner[:] = sorted(each for each in inner if not each.startswith(".")) if depth < _DEEPEST else []
        seen += len(files)
        if seen > _MOST_FILES:
            return
        loras = {each.rpartition(".")[0] for each in files if each.lower().endswith(".safetensors")}
        for file in sorted(files):
            stem, dot, suffix = file.rpartition(".")
            if file.startswith(".") or (dot + suffix).lower() not in _SUFFIXES:
                continue
            if stem in loras or stem.removesuffix(".preview") in loras:
                continue
            name = Path(here, file).relative_to(folder).as_posix()
            if not _UNTYPED.search(name) and name == name.strip():
                yield name


@lru_cache(maxsize=16)
def _shade(path: Path, mtime_ns: int, size: int) -> bytes | None:
    try:
        from PIL import Image
    except ImportError:  # the mask cannot be used either, and who paints is told
        return None
    buffer = io.BytesIO()
    try:
        with Image.open(io.BytesIO(read_plain(path, _LARGEST))) as opened:
            if opened.width * opened.height > _LARGEST:
                return None
            opened.draft("L", (_SIDE, _SIDE))
            grey = opened.convert("L")
            grey.thumbnail((_SIDE, _SIDE))
            dark = Image.new("LA", grey.size)
            dark.putalpha(grey.point([round((255 - value) * _DARKEST) for value in range(256)]))
            dark.save(buffer, "PNG")
    except (
        OSError,
        ValueError,
        SyntaxError,
        Image.DecompressionBombError,
    ):  # of no picture
        return None
    return buffer.getvalue()
