"""The pictures that wait, and the one painter that they wait for: batches of whatever is there, each with its LoRAs."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from lora_runtime.batching.fitting import Paintable, next_batch
from lora_runtime.batching.halving import Stopped
from lora_runtime.errors import LoraError
from lora_runtime.prompt import LoraTag

__all__ = ["Line", "LineClosedError", "LineFullError", "Paints"]

_FIRST_GUESS = 5.0  # seconds for a picture, before one was painted
_NEWEST = 0.2  # its share in the mean

Asked = TypeVar("Asked", bound=Paintable)
Result = TypeVar("Result")
AskedIn = TypeVar("AskedIn", contravariant=True)
ResultOut = TypeVar("ResultOut", covariant=True)


class LineClosedError(LoraError):
    """The line takes in nobody else, and whoever waited is sent away."""


class LineFullError(LoraError):
    """Too many wait; it may be worth while to come back after `seconds`."""

    def __init__(self, message: str, seconds: int) -> None:
        super().__init__(message)
        self.seconds = seconds


class Paints(Protocol[AskedIn, ResultOut]):
    """What a painter does."""

    def paint(self, asked: Sequence[AskedIn], stopped: Callable[[], bool] | None = None, /) -> Sequence[ResultOut]:
        """Return what became of each of a batch; Stopped where `stopped` says yes, which is asked at each step."""


@dataclass(eq=False)
class _Waiting(Generic[Asked, Result]):
    asked: Asked
    since: float  # on the clock of the loop
    done: asyncio.Future[Result]
    gone: threading.Event  # nobody waits for it any more

    @property
    def shape(self) -> tuple[Any, ...]:
        return self.asked.shape

    @property
    def tags(self) -> tuple[LoraTag, ...]:
        return self.asked.tags


class Line(Generic[Asked, Result]):
    """Within `async with` pictures are painted, on a thread of their own; whoever leaves the line is painted no more.

    The picture that came first is in the next batch, with others that can be painted in one call with it: so none waits
    for ever behind those of another size.
    """

    def __init__(
        self,
        painter: Paints[Asked, Result],
        *,
        max_batch: int,
        max_queue: int,
        max_wait_ms: int = 0,
        seen: Callable[[int, float], None] | None = None,
    ) -> None:
        """Take a painter, which is given at most `max_batch` at once.

        The first of a batch waits `max_wait_ms` for others, and at most `max_queue` wait. `seen` is told of each batch:
        how many pictures, and seconds.
        """
        self._painter = painter
        self._max_batch, self._max_queue, self._max_wait = max_batch, max_queue, max_wait_ms / 1000
        self._seen = seen or (lambda pictures, seconds: None)
        self._waiting: list[_Waiting[Asked, Result]] = []
        self._in_hand: list[_Waiting[Asked, Result]] = []
        self._came = asyncio.Event()
        self._closed = False
        self._seconds_each = _FIRST_GUESS
        self._thread = ThreadPoolExecutor(1, "painter")
        self._work: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __aenter__(self) -> Line[Asked, Result]:
        """Begin to paint."""
        self._loop = asyncio.get_running_loop()
        self._work = self._loop.create_task(self._run())
        return self

    async def __aexit__(self, *error: object) -> None:
        """Take in nobody else, send away who waits, and finish what is being painted."""
        self.close()
        await self.ended()
        self._thread.shutdown()

    async def ended(self) -> None:
        """Return once it is closed and nothing is painted any more."""
        if self._work is not None:
            await self._work

    @property
    def waiting(self) -> int:
        """How many pictures wait."""
        return sum(not each.done.done() for each in self._waiting)

    @property
    def in_hand(self) -> int:
        """How many pictures are being painted."""
        return len(self._in_hand)

    @property
    def open(self) -> bool:
        """Whether pictures are taken in."""
        return self._work is not None and not self._work.done() and not self._closed

    def close(self) -> None:
        """Take in nobody else, and send away who waits."""
        self._closed = True
        for each in self._waiting:
            if not each.done.done():
                each.done.set_exception(_closed())
        self._came.set()

    def close_soon(self) -> None:
        """Close it from another thread, or from the handler of a signal."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self.close)

    def give_up(self) -> None:
        """Have what is being painted end at its next step, whoever waits for it; from any thread."""
        for each in self._in_hand:
            each.gone.set()

    async def paint(self, asked: Sequence[Asked]) -> list[Result]:
        """Return what became of the pictures, in order. Cancelled, it takes them out of the line.

        LineFullError where too many wait, LineClosedError where it takes in nobody, or is closed before they are
        painted.
        """
        if not self.open:
            raise _closed()
        if self.waiting + len(asked) > self._max_queue:
            raise self._full()
        loop = asyncio.get_running_loop()
        mine = [_Waiting[Asked, Result](each, loop.time(), loop.create_future(), threading.Event()) for each in asked]
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
                        each.done.set_exception(_closed())
                continue
            except Exception as error:  # what no painter expects costs this batch, and not the server
                for each in batch:
                    if not each.done.done():
                        each.done.set_exception(error)
                continue
            finally:
                self._in_hand = []
            seconds = loop.time() - began
            self._seconds_each += _NEWEST * (seconds / len(batch) - self._seconds_each)
            self._seen(len(batch), seconds)
            for each, found in zip(batch, painted, strict=True):
                if not each.done.done():
                    each.done.set_result(found)

    def _paint(self, batch: Sequence[_Waiting[Asked, Result]]) -> Sequence[Result]:
        return self._painter.paint([each.asked for each in batch], lambda: all(each.gone.is_set() for each in batch))

    async def _gather(self) -> None:
        """Return when the line is worth a batch: it is full, or the first has waited long enough, or it is closed."""
        loop = asyncio.get_running_loop()
        while not self._closed:
            self._came.clear()
            left = [each for each in self._waiting if not each.done.done()]
            due = min((each.since for each in left), default=math.inf) + self._max_wait
            if len(left) >= self._max_batch or due <= loop.time():
                return
            try:
                await asyncio.wait_for(self._came.wait(), None if not left else due - loop.time())
            except asyncio.TimeoutError:  # of Python 3.10 it is no TimeoutError
                return

    def _next(self) -> list[_Waiting[Asked, Result]]:
        """Take the batch of the picture that came first out of the line."""
        self._waiting = [each for each in self._waiting if not each.done.done()]
        if not self._waiting:
            return []
        batch = set(map(id, next_batch(self._waiting, self._max_batch)))
        found = [each for each in self._waiting if id(each) in batch]
        self._waiting = [each for each in self._waiting if id(each) not in batch]
        return found

    def _full(self) -> LineFullError:
        seconds = max(1, math.ceil(self._seconds_each * (self.waiting + self.in_hand)))
        said = f"{self.waiting} images wait, and {self._max_queue} are the most: try again in {seconds} s"
        return LineFullError(said, seconds)


def _closed() -> LineClosedError:
    return LineClosedError("the server is stopping")
