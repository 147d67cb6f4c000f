"""A line for whoever waits in a thread: its event loop runs in one of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

from lora_runtime.batching.fitting import Paintable
from lora_runtime.batching.line import Line, LineClosedError

__all__ = ["LineInThread"]

Asked = TypeVar("Asked", bound=Paintable)
Result = TypeVar("Result")


class LineInThread(Generic[Asked, Result]):
    """The same line, safe to use from several threads; it begins when the first picture is asked for."""

    def __init__(self, line: Line[Asked, Result]) -> None:
        self._line = line
        self._lock = threading.Lock()
        self._closed = False
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def paint(self, asked: Sequence[Asked]) -> Future[list[Result]]:
        """Return the future of what becomes of the pictures; cancelling it takes them out of the line.

        It raises what `Line.paint` does.
        """
        with self._lock:  # the loop does not end meanwhile
            if self._closed:
                raise LineClosedError("the server is stopping")
            return asyncio.run_coroutine_threadsafe(self._line.paint(asked), self._begun())

    @property
    def length(self) -> int:
        """How many pictures wait or are being painted."""
        return self._line.waiting + self._line.in_hand

    def close(self) -> None:
        """Take in nobody else, send away who waits, and end what is being painted at its next step."""
        with self._lock:
            self._closed = True
            thread, self._thread = self._thread, None
        if thread is not None:
            self._line.close_soon()
            self._line.give_up()
            thread.join()

    def _begun(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            begun: Future[asyncio.AbstractEventLoop] = Future()
            self._thread = threading.Thread(target=asyncio.run, args=[self._serve(begun)], name="line", daemon=True)
            self._thread.start()
            self._loop = begun.result()
        return self._loop

    async def _serve(self, begun: Future[asyncio.AbstractEventLoop]) -> None:
        """Paint until the line is closed."""
        async with self._line:
            begun.set_result(asyncio.get_running_loop())
            await self._line.ended()
