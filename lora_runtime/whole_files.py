"""Files that are written only whole: under their name is the old content, or all of the new one."""

from __future__ import annotations

import os
import threading
from pathlib import Path

__all__ = ["write_whole"]


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that has its name once all of it is on the disk; raises OSError, and leaves what was there.

    Of two who write at a time each writes a whole file: the draft's name is this thread's own.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
