"""One sweep at a time in a folder: two would write each other's manifest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lora_runtime.sweep.rows import SweepError

__all__ = ["alone_in"]

_NAME = ".sweep.lock"


@contextmanager
def alone_in(folder: Path) -> Iterator[str]:
    """Make a folder and have it for oneself within the block; SweepError where another sweep has it.

    The lock is the system's, on a file that stays: it goes with the process, however that ends. Gives what there is to
    say where the file system has no locks, else "".
    """
    from filelock import FileLock, Timeout  # which torch brings along

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / _NAME)
    said = ""
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise SweepError(
            f"another sweep paints into {folder} now: wait until it is done, or name another folder"
        ) from error
    except NotImplementedError:
        said = f"the file system of {folder} has no locks: nothing keeps two sweeps in it apart"
    try:
        yield said
    finally:
        lock.release()
