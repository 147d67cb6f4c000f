"""Work that is done elsewhere: what it says on the way, then what came of it, and an end before that."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError as FutureCancelledError
from concurrent.futures import Future
from typing import Generic, TypeVar

from lora_runtime.studio.faults import CancelledError

__all__ = ["Job"]

Said = TypeVar("Said")
Result = TypeVar("Result")
Begin = Callable[[Callable[[Said], None], Callable[[], bool]], Future[Result]]


class Job(Generic[Said, Result]):
    """What one person waits for.

    `begin` is given a function that takes what is said, and one that tells whether nobody waits any more; it returns
    the future of the result. Both may be called from any thread.
    """

    def __init__(self, begin: Begin[Said, Result]) -> None:
        self._begin = begin
        self._cancelled = threading.Event()
        self._queue: queue.SimpleQueue[tuple[str, object]] = queue.SimpleQueue()

    def cancel(self) -> None:
        """End `run` at once; before it has begun counts too."""
        self._cancelled.set()
        self._queue.put(("failed", CancelledError("cancelled")))

    def run(self) -> Iterator[Said | Result]:
        """Yield what is said, then the result; raises what the work raises. Closing this cancels the work."""
        if self._cancelled.is_set():
            raise CancelledError("cancelled")
        future = self._begin(self._say, self._cancelled.is_set)
        future.add_done_callback(self._done)
        try:
            while True:
                kind, value = self._queue.get()
                if kind == "failed":
                    raise value  # type: ignore[misc]
                yield value  # type: ignore[misc]
                if kind == "done":
                    return
        finally:
            self._cancelled.set()
            future.cancel()

    def _done(self, future: Future[Result]) -> None:
        try:
            self._queue.put(("done", future.result()))
        except FutureCancelledError:
            self._queue.put(("failed", CancelledError("cancelled")))
        except BaseException as error:  # raised again where the work is waited for
            self._queue.put(("failed", error))

    def _say(self, what: Said) -> None:
        if not self._cancelled.is_set():
            self._queue.put(("said", what))
