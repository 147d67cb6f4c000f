"""Rows to batches, in an order in which files are loaded once and change seldom: pure, and without torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from lora_runtime.batching.fitting import in_batches
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

    A batch has one model, one size of pictures, one number of steps and one guidance; see `in_batches`.
    """
    of = {id(row): frozenset(files(row)) for row in rows}
    batches = in_batches(rows, size, lambda row: of[id(row)])
    return [Batch(batch, frozenset[str]().union(*(of[id(row)] for row in batch))) for batch in batches]


def shares(batches: Sequence[Batch], workers: int) -> list[list[Batch]]:
    """Return the batches of each worker: stretches of about the same cost, so that a file is wanted by few of them."""
    total, done = sum(batch.cost for batch in batches), 0.0
    found: list[list[Batch]] = [[] for _ in range(workers)]
    for batch in batches:
        middle = done + batch.cost / 2
        found[min(workers - 1, int(workers * middle / total))].append(batch)
        done += batch.cost
    return found
