"""Errors that do not stop the program: kept for the tests, each with its exception."""

from __future__ import annotations

import sys

reported: list[tuple[str, BaseException | None]] = []


def report(message: str, *, exc_info: bool = False) -> None:
    """Keep a message and the exception that is being handled."""
    reported.append((message, sys.exc_info()[1] if exc_info else None))


def display(error: BaseException, task: str, *, full_traceback: bool = False) -> None:
    """Keep an error and what failed by it."""
    reported.append((task, error))
