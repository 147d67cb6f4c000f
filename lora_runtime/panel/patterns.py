"""Patterns that a person writes with commas between: which folders have no cards, and which pictures are blurred."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from fnmatch import fnmatchcase
from functools import cache

__all__ = ["has_one", "in_folders", "patterns_of"]


def patterns_of(text: str) -> list[str]:
    """Return what is written with commas between, in lower case; * and ? stand for more."""
    return [part.strip().strip("/").lower() for part in text.split(",") if part.strip().strip("/")]


def in_folders(patterns: Collection[str]) -> Callable[[str], bool]:
    """Return whether a folder ("style/water", "" for the outermost), or one that it is in, is called like a pattern.

    A pattern is one of its name or of its path. What was found of a folder is remembered.
    """

    @cache
    def found(folder: str) -> bool:
        while patterns and folder:
            above, _, name = folder.rpartition("/")
            if any(fnmatchcase(text.lower(), pattern) for pattern in patterns for text in (folder, name)):
                return True
            folder = above
        return False

    return found


def has_one(patterns: Iterable[str], texts: Iterable[str]) -> bool:
    """Return whether one of the patterns stands somewhere in these texts, in either case."""
    text = "\n".join(texts).lower()
    return any(fnmatchcase(text, f"*{pattern}*") for pattern in patterns)
