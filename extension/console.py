"""The console that the program was started from: lines for a person who reads along there."""

from __future__ import annotations

import contextlib
import sys

__all__ = ["say"]


def say(text: str) -> None:
    """Print a line under the extension's name; never raises.

    Names of files and prompts may have characters that a console on Windows (cp1252) lacks: these are escaped.
    """
    line = f"[lora-runtime] {text}"
    with contextlib.suppress(OSError, ValueError):  # a console that was closed
        try:
            print(line)
        except UnicodeEncodeError:
            encoding = sys.stdout.encoding or "ascii"
            print(line.encode(encoding, "backslashreplace").decode(encoding))
