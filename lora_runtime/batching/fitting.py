"""Which pictures can be painted in one call of a pipeline, and in which order: pure, and without torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Any, Protocol, TypeVar

from lora_runtime.prompt import LoraTag

__all__ = ["Paintable", "in_batches", "next_batch"]


class Paintable(Protocol):
    """A picture to be painted."""

    @property
    def shape(self) -> tuple[Any, ...]:
        """What a call of a pipeline has one of, the pipeline first; shapes can be sorted."""

    @property
    def tags(self) -> tuple[LoraTag, ...]:
        """The tags of its prompt."""


Picture = TypeVar("Picture", bound=Paintable)


def in_batches(
    pictures: Sequence[Picture], size: int, files: Callable[[Picture], Iterable[str]]
) -> list[tuple[Picture, ...]]:
    """Return the pictures in batches of at most `size`; `files` names those of one, the same name for the same file.

    A batch has one shape, and the batches of a pipeline follow each other. Pictures with the same tags come together
    first, since a LoRA that all pictures of a batch ask for alike costs nothing while they are painted; the rest is
    mixed. Pictures that share files follow each other, those with the files that most want first.
    """
    of = {id(picture): tuple(files(picture)) for picture in pictures}
    wanted = Counter(name for names in of.values() for name in set(names))

    def by_files(picture: Picture) -> list[tuple[int, str]]:
        return sorted((-wanted[name], name) for name in set(of[id(picture)]))

    found: list[tuple[Picture, ...]] = []
    for _, alike in _groups(pictures, lambda picture: picture.shape):
        full: list[tuple[Any, list[Picture]]] = []
        rest: list[Picture] = []
        for tags, same in _groups(alike, lambda picture: (by_files(picture), _texts_of(picture))):
            whole = len(same) // size * size
            full += [(tags, same[start : start + size]) for start in range(0, whole, size)]
            rest += same[whole:]
        parts = [rest[start : start + size] for start in range(0, len(rest), size)]
        full += [((by_files(part[0]), _texts_of(part[0])), part) for part in parts]
        full.sort(key=lambda each: each[0])
        found += [tuple(part) for _, part in full]
    return found


def next_batch(waiting: Sequence[Picture], size: int) -> tuple[Picture, ...]:
    """Return the batch with the picture that came first; `waiting` are in the order in which they came."""
    batches = in_batches(waiting, size, lambda picture: [tag.name for tag in picture.tags])
    return next(batch for batch in batches if any(picture is waiting[0] for picture in batch))


def _groups(pictures: Iterable[Picture], key: Callable[[Picture], Any]) -> list[tuple[Any, list[Picture]]]:
    """Return the pictures by key, in the order of the keys; within one in their own order."""
    return [(found, list(same)) for found, same in groupby(sorted(pictures, key=key), key=key)]


def _texts_of(picture: Paintable) -> tuple[str, ...]:
    return tuple(sorted(tag.raw for tag in picture.tags))
