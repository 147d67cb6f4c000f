"""Modules side by side: each on one thread, in the order in which they were given.

The factorisations of one module are too small to be shared out among threads, which would mostly wait for each other:
on two busy cores that took ten times as long as one thread. Modules do not wait.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

__all__ = ["in_order"]

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_MOST = 8  # modules in memory at a time


def in_order(work: Callable[[_Item], _Result], items: Iterable[_Item], *, alone: bool = False) -> Iterator[_Result]:
    """Yield what `work` gives for each item, as many at a time as torch has threads; what it raises is raised here.

    `alone`: one after the other, where it is a device that does the work.
    """
    threads = torch.get_num_threads()
    workers = 1 if alone else min(threads, _MOST)
    if workers == 1:
        yield from map(work, items)
        return
    waiting: deque[Future[_Result]] = deque()
    # Of who asks too, until all is done: threads that have shared one operation wait for the next one, and take the
    # processor from those that work.
    torch.set_num_threads(1)
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) >= workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
            torch.set_num_threads(threads)
