"""Which worker paints which batch next, and what becomes of the batch of one that dies: no torch, no Ray."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence

from lora_runtime.sweep.plan import Batch
from lora_runtime.sweep.rows import Row

__all__ = ["Dispatch"]

_TRIES = 2


class Dispatch:
    """The batches that are still to be painted, in a queue for each worker."""

    def __init__(self, shares: Sequence[Sequence[Batch]]) -> None:
        self._queues = [deque(share) for share in shares]
        self._tries: Counter[str] = Counter()
        self._models: dict[int, str] = {}  # of each worker, by what it painted last

    @property
    def empty(self) -> bool:
        """Whether no batch is left to be given out."""
        return not any(self._queues)

    def next(self, worker: int) -> Batch | None:
        """Return what a worker paints next, None where nothing is left.

        Its own batches come first, whose files it has; then the last one of whoever has most to do, if it can be one of
        the model that it has.
        """
        if self._queues[worker]:
            batch = self._queues[worker].popleft()
        elif self.empty:
            return None
        else:
            model = self._models.get(worker)
            longest = max(self._queues, key=lambda queue: (bool(queue) and queue[-1].model == model, len(queue)))
            batch = longest.pop()
        self._models[worker] = batch.model
        return batch

    def lost(self, worker: int, batch: Batch) -> list[Row]:
        """Take back the batch of a worker that died with it; return those of its rows that have no more tries.

        The others are tried once more, on the next worker and each alone, so that the one that kills workers costs none
        beside itself.
        """
        self._tries.update(row.key for row in batch.rows)
        self._queues[(worker + 1) % len(self._queues)].extendleft(
            Batch((row,), batch.files) for row in reversed(batch.rows) if self._tries[row.key] < _TRIES
        )
        return [row for row in batch.rows if self._tries[row.key] >= _TRIES]
