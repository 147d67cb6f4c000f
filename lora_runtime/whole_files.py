"""Files that are written only whole, under their name the old content or all of the new one; and read with a limit."""

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path

__all__ = ["read_plain", "write_whole"]


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


def read_plain(path: Path, most: int) -> bytes:
    """Return the content of a file of at most so many bytes; raises OSError, also for a larger one or no plain file.

    A pipe could wait for ever, and a device go on for ever.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is no plain file", str(path))
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it has more than {most:,} bytes", str(path))
    return content
