"""Pictures that show what a file does, beside it."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from .sidecar import beside

__all__ = ["find_preview"]


def find_preview(path: Path, extensions: Iterable[str], names: Collection[str] | None = None) -> Path | None:
    """Return the picture beside the LoRA file `path`: `ink.png`, or `ink.preview.png`; None without one.

    `extensions` come in the order of preference. `names`, where given, are the files of the folder as listed before.
    """
    return beside(path, [end for ext in extensions for end in (f".{ext}", f".preview.{ext}")], names)
