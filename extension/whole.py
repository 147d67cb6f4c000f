"""Texts with half of a character in them, which can neither be sent nor printed.

A file name that is not UTF-8 comes out of Python with such halves, and so does an emoji that some tool cut in two.
"""

from __future__ import annotations

import os
from pathlib import PurePath
from typing import Any

__all__ = ["is_whole", "shown_path", "whole"]


def is_whole(text: str) -> bool:
    """Return whether the text can be written as UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def whole(value: Any) -> Any:
    """Return a text, or JSON's lists and tables of texts, with a question mark in a box for each half."""
    if isinstance(value, str):
        return value if is_whole(value) else value.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    if isinstance(value, dict):
        return {whole(key): whole(item) for key, item in value.items()}
    return [whole(item) for item in value] if isinstance(value, (list, tuple)) else value


def shown_path(path: str | PurePath) -> str:
    """Return a path as text, with the codes of bytes in it that are not UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
