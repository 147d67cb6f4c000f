"""What a run of the command line leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Result(NamedTuple):
    """What a command left: its exit status, and what it printed."""

    status: int
    out: str
    err: str


Command = Callable[..., Result]
