"""A progress bar on what takes longer than a second, on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Iterator
from typing import TypeVar

__all__ = ["steps"]

_Item = TypeVar("_Item")
_PATIENCE = 1.0  # seconds: what is done sooner needs no bar
_PAUSE = 5.0  # seconds between two plain lines


def steps(items: Collection[_Item], what: str, *, show: bool) -> Iterator[_Item]:
    """Yield the items; where `show`, tell on stderr how far it is: by tqdm where that is installed, else by lines."""
    if not show:
        yield from items
        return
    try:
        from tqdm import tqdm
    except ImportError:
        yield from _lines(items, what)
        return
    yield from tqdm(items, desc=what, delay=_PATIENCE, leave=False)


def _lines(items: Collection[_Item], what: str) -> Iterator[_Item]:
    due = time.monotonic() + _PATIENCE
    for done, item in enumerate(items):
        if time.monotonic() >= due:
            print(f"{what}: {done:,} of {len(items):,}", file=sys.stderr, flush=True)
            due = time.monotonic() + _PAUSE
        yield item
