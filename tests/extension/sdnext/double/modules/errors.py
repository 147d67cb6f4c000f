"""How the program tells of errors; there is no `report`."""

from __future__ import annotations

from modules.logger import log


def display(error: BaseException, task: str) -> None:
    """Print an error and go on."""
    log.error("%s: %s: %s", task, type(error).__name__, error)
