"""A batch that fails, in halves until what fails is alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from lora_runtime.errors import LoraError

__all__ = ["Stopped", "in_halves", "reason_of"]

Picture = TypeVar("Picture")
Result = TypeVar("Result")


class Stopped(Exception):
    """Nobody waits for these pictures any more."""


def in_halves(
    pictures: Sequence[Picture],
    together: Callable[[Sequence[Picture]], list[Result]],
    failed: Callable[[Picture, Exception], Result],
) -> list[Result]:
    """Return what `together` makes of the pictures; where it raises, of each half of them, and so on.

    So one that cannot be painted costs no other, and a batch that is too large for the memory is painted in parts. Of
    one that fails alone the result is what `failed` makes of its error. Stopped is raised on.
    """
    try:
        return together(pictures)
    except Stopped:
        raise
    except Exception as error:  # a pipeline may be anybody's, and so what it raises
        if len(pictures) == 1:
            return [failed(pictures[0], error)]
    # Not within the handler: the error has the memory of the call that failed.
    half = len(pictures) // 2
    return in_halves(pictures[:half], together, failed) + in_halves(pictures[half:], together, failed)


def reason_of(error: BaseException) -> str:
    """Return why there is no picture, in one line; of what is no error of this library, its kind too."""
    said = " ".join(str(error).split())
    return said if isinstance(error, LoraError) and said else f"{type(error).__name__}: {said}".rstrip(": ")
