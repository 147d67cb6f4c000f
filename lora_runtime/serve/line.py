"""The rows that wait, and the one painter that they wait for: batches of whatever is there, each row with its LoRAs."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from lora_runtime.serve.limits import Limits, Refused
from lora_runtime.sweep.paint import Painted, Stopped
from lora_runtime.sweep.plan import make_batches
from lora_runtime.sweep.rows import Row

__all__ = ["Line", "Paints"]

_FIRST_GUESS = 5.0  # seconds for a row, before one was painted
_NEWEST = 0.2  # its share in the mean


class Paints(Protocol):
    """What a `Painter` of a sweep does."""

    def paint(self, rows: Sequence[Row], stopped: Callable[[], bool] | None = None) -> list[Painted]:
        """Return what became of each row."""


@dataclass(eq=False)
class _Waiting:
    row: Row
    since: float  # on the clock of the loop
    done: asyncio.Future[Painted]
    gone: threading.Event  # nobody waits for it any more


class Line:
    """Within `async with` rows are painted, on a thread of their own; whoever leaves the line is painted no more.

    The row that came first is in the next batch, with others that can be painted in one call with it: so none waits
    for ever behind those of another size.
    """

    def __init__(self, painter: Paints, limits: Limits, seen: Callable[[int, float], None] | None = None) -> None:
        """Take a painter. `seen` is told of each batch: how many rows, and seconds."""
        self._painter = painter
        self._limits = limits
        self._seen = seen or (lambda rows, seconds: None)
        self._waiting: list[_Waiting] = []
        self._in_hand: list[_Waiting] = []
        self._came = asyncio.Event()
        self._closed = False
        self._seconds_a_row = _FIRST_GUESS
        self._thread = ThreadPoolExecutor(1, "painter")
        self._work: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __aenter__(self) -> Line:
        """Begin to paint."""
        self._loop = asyncio.get_running_loop()
        self._work = self._loop.create_task(self._run())
        return self

    async def __aexit__(self, *error: object) -> None:
        """Take in nobody else, send away who waits, and finish what is being painted."""
        self.close()
        if self._work is not None:
            await self._work
        self._thread.shutdown()

    @property
    def waiting(self) -> int:
        """How many rows wait."""
        return sum(not each.done.done() for each in self._waiting)

    @property
    def in_hand(self) -> int:
        """How many rows are being painted."""
        return len(self._in_hand)

    @property
    def open(self) -> bool:
        """Whether rows are taken in."""
        return self._work is not None and not self._work.done() and not self._closed

    def close(self) -> None:
        """Take in nobody else, and send away who waits."""
        self._closed = True
        for each in self._waiting:
            if not each.done.done():
                each.done.set_exception(_stopping())
        self._came.set()

    def close_soon(self) -> None:
        """Close it from another thread, or from the handler of a signal."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self.close)

    def give_up(self) -> None:
        """Have what is being painted end at its next step, whoever waits for it; from any thread."""
        for each in self._in_hand:
            each.gone.set()

    async def paint(self, rows: Sequence[Row]) -> list[Painted]:
        """Return what became of the rows, in order. Cancelled, it takes them out of the line.

        Refused with 429 where too many wait, with 503 where the server stops.
        """
        if not self.open:
            raise _stopping()
        if self.waiting + len(rows) > self._limits.max_queue:
            raise self._full()
        loop = asyncio.get_running_loop()
        mine = [_Waiting(row, loop.time(), loop.create_future(), threading.Event()) for row in rows]
        self._waiting += mine
        self._came.set()
        try:
            return list(await asyncio.gather(*(each.done for each in mine)))
        finally:
            for each in mine:
                each.gone.set()
                each.done.cancel()
                if each.done.done() and not each.done.cancelled():
                    each.done.exception()  # it was asked for: the first of them is the one that is raised

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._closed:
            await self._gather()
            self._in_hand = batch = [] if self._closed else self._next()
            if not batch:
                continue
            began = loop.time()
            try:
                painted = await loop.run_in_executor(self._thread, self._paint, batch)
            except Stopped:
                for each in batch:
                    if not each.done.done():
                        each.done.set_exception(_stopping())
                continue
            except Exception as error:  # what no painter expects costs this batch, and not the server
                for each in batch:
                    if not each.done.done():
                        each.done.set_exception(error)
                continue
            finally:
                self._in_hand = []
            seconds = loop.time() - began
            self._seconds_a_row += _NEWEST * (seconds / len(batch) - self._seconds_a_row)
            self._seen(len(batch), seconds)
            for each, found in zip(batch, painted, strict=True):
                if not each.done.done():
                    each.done.set_result(found)

    def _paint(self, batch: Sequence[_Waiting]) -> list[Painted]:
        return self._painter.paint([each.row for each in batch], lambda: all(each.gone.is_set() for each in batch))

    async def _gather(self) -> None:
        """Return when the line is worth a batch: it is full, or the first has waited long enough, or it is closed."""
        loop = asyncio.get_running_loop()
        while not self._closed:
            self._came.clear()
            left = [each for each in self._waiting if not each.done.done()]
            due = min((each.since for each in left), default=math.inf) + self._limits.max_wait_ms / 1000
            if len(left) >= self._limits.max_batch or due <= loop.time():
                return
            try:
                await asyncio.wait_for(self._came.wait(), None if not left else due - loop.time())
            except asyncio.TimeoutError:  # of Python 3.10 it is no TimeoutError
                return

    def _next(self) -> list[_Waiting]:
        """Take the batch of the row that came first out of the line."""
        self._waiting = [each for each in self._waiting if not each.done.done()]
        if not self._waiting:
            return []
        by_key = {each.row.key: each for each in self._waiting}
        batches = make_batches(
            [each.row for each in self._waiting],
            self._limits.max_batch,
            lambda row: [tag.name for tag in row.tags],
        )
        first = self._waiting[0].row.key
        keys = next(keys for batch in batches if first in (keys := {row.key for row in batch.rows}))
        self._waiting = [each for each in self._waiting if each.row.key not in keys]
        return [each for key, each in by_key.items() if key in keys]

    def _full(self) -> Refused:
        seconds = max(1, math.ceil(self._seconds_a_row * (self.waiting + self.in_hand)))
        return Refused(
            429,
            f"{self.waiting} images wait, and {self._limits.max_queue} are the most: try again in {seconds} s",
            "queue_full",
            retry_after=seconds,
        )


def _stopping() -> Refused:
    return Refused(503, "the server is stopping", "stopping", retry_after=10)
