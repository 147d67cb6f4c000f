"""Rows to batches, in an order in which files are loaded once and change seldom: pure, and without torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from lora_runtime.sweep.rows import Row

__all__ = ["Batch", "make_batches", "shares"]

Files = Callable[[Row], Iterable[str]]


@dataclass(frozen=True)
class Batch:
    """Rows that are painted in one call of the pipeline, and the files that they need."""

    rows: tuple[Row, ...]
    files: frozenset[str]

    @property
    def model(self) -> str:
        """The name of the model that paints them."""
        return self.rows[0].model

    @property
    def cost(self) -> float:
        """What it takes to paint, in no unit: pixels × steps, where the rows say them."""
        return sum((row.width or 512) * (row.height or 512) * (row.steps or 30) for row in self.rows)


def make_batches(rows: Sequence[Row], size: int, files: Files) -> list[Batch]:
    """Return the rows in batches of at most `size`; `files` names the files of a row, the same name for the same file.

    A batch has one model, one size of pictures, one number of steps and one guidance, and the batches of a model follow
    each other. Rows with the same tags come together first, since a LoRA that all pictures of a batch ask for alike
    costs nothing while they are painted; the rest is mixed.
    Rows that share files follow each other, those with the files that most rows want first.
    """
    of = {row.key: tuple(files(row)) for row in rows}
    wanted = Counter(name for names in of.values() for name in set(names))

    def by_files(row: Row) -> list[tuple[int, str]]:
        return sorted((-wanted[name], name) for name in set(of[row.key]))

    found: list[Batch] = []
    for _, alike in _groups(rows, _shape):
        full: list[tuple[Any, list[Row]]] = []
        rest: list[Row] = []
        for tags, same in _groups(alike, lambda row: (by_files(row), _tags(row))):
            whole = len(same) // size * size
            full += [(tags, same[start : start + size]) for start in range(0, whole, size)]
            rest += same[whole:]
        parts = [rest[start : start + size] for start in range(0, len(rest), size)]
        full += [((by_files(part[0]), _tags(part[0])), part) for part in parts]
        full.sort(key=lambda each: each[0])
        found += [Batch(tuple(part), frozenset(name for row in part for name in of[row.key])) for _, part in full]
    return found


def shares(batches: Sequence[Batch], workers: int) -> list[list[Batch]]:
    """Return the batches of each worker: stretches of about the same cost, so that a file is wanted by few of them."""
    total, done = sum(batch.cost for batch in batches), 0.0
    found: list[list[Batch]] = [[] for _ in range(workers)]
    for batch in batches:
        middle = done + batch.cost / 2
        found[min(workers - 1, int(workers * middle / total))].append(batch)
        done += batch.cost
    return found


def _groups(rows: Iterable[Row], key: Callable[[Row], Any]) -> list[tuple[Any, list[Row]]]:
    """Return the rows by key, in the order of the keys; within one in their own order."""
    return [(found, list(same)) for found, same in groupby(sorted(rows, key=key), key=key)]


def _shape(row: Row) -> tuple[Any, ...]:
    """Return what a call of a pipeline has one of, the pipeline first; a negative prompt is given to all or to none."""
    values = (row.width, row.height, row.steps, row.guidance_scale)
    return (row.model, *((value is not None, value or 0) for value in values), bool(row.negative))


def _tags(row: Row) -> tuple[str, ...]:
    return tuple(sorted(tag.raw for tag in row.tags))
