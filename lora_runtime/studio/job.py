"""A piece of work in a thread of its own: what it says on the way, then what came of it, and an end before that."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from lora_runtime.studio.faults import CancelledError

__all__ = ["Job"]

Said = TypeVar("Said")
Result = TypeVar("Result")


class Job(Generic[Said, Result]):
    """Work that says things on the way.

    `work` is given a function that takes what is said, and that raises CancelledError once the job is cancelled.
    """

    def __init__(self, work: Callable[[Callable[[Said], None]], Result]) -> None:
        self._work = work
        self._cancelled = threading.Event()
        self._queue: queue.SimpleQueue[tuple[str, object]] = queue.SimpleQueue()

    def cancel(self) -> None:
        """End `run` at once, and the work where it says something next; before it has begun counts too."""
        self._cancelled.set()
        self._queue.put(("failed", CancelledError("cancelled")))

    def run(self) -> Iterator[Said | Result]:
        """Yield what is said, then the result; raises what the work raises. Closing this cancels the work."""
        if self._cancelled.is_set():
            raise CancelledError("cancelled")
        thread = threading.Thread(target=self._in_thread, name="studio", daemon=True)
        thread.start()
        try:
            while True:
                kind, value = self._queue.get()
                if kind == "failed":
                    raise value  # type: ignore[misc]
                yield value  # type: ignore[misc]
                if kind == "done":
                    return
        finally:
            self.cancel()

    def _in_thread(self) -> None:
        try:
            self._queue.put(("done", self._work(self._say)))
        except BaseException as error:  # raised again where the work is waited for
            self._queue.put(("failed", error))

    def _say(self, what: Said) -> None:
        if self._cancelled.is_set():
            raise CancelledError("cancelled")
        self._queue.put(("said", what))
