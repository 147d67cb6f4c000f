"""Work elsewhere: what it says, its end, and its failure."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from lora_runtime.studio.faults import CancelledError
from lora_runtime.studio.job import Job

Work = Callable[[Callable[[int], None], Callable[[], bool]], Any]


def in_thread(work: Work) -> Job[int, Any]:
    """Return a job whose work runs in a thread."""

    def begin(say: Callable[[int], None], gone: Callable[[], bool]) -> Future[Any]:
        with_one = ThreadPoolExecutor(1)
        future = with_one.submit(work, say, gone)
        with_one.shutdown(wait=False)
        return future

    return Job(begin)


def test_what_is_said_comes_in_order_and_the_result_last() -> None:
    def work(say: Callable[[int], None], gone: Callable[[], bool]) -> str:
        say(1)
        say(2)
        return "done"

    assert list(in_thread(work).run()) == [1, 2, "done"]


def test_what_the_work_raises_is_raised_where_it_is_waited_for() -> None:
    def work(say: Callable[[int], None], gone: Callable[[], bool]) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        list(in_thread(work).run())


def test_a_job_that_was_cancelled_before_it_began_does_nothing() -> None:
    began = []
    job = in_thread(lambda say, gone: began.append(1))
    job.cancel()
    with pytest.raises(CancelledError):
        list(job.run())
    assert not began


def test_work_that_is_cancelled_elsewhere_says_so() -> None:
    future: Future[int] = Future()
    job: Job[int, int] = Job(lambda say, gone: future)
    future.cancel()
    with pytest.raises(CancelledError):
        list(job.run())


def test_a_job_that_is_cancelled_takes_its_future_back() -> None:
    future: Future[int] = Future()
    job: Job[int, int] = Job(lambda say, gone: (say(1), future)[1])
    running = job.run()
    assert next(running) == 1
    job.cancel()
    with pytest.raises(CancelledError):
        next(running)
    assert future.cancelled()


@pytest.mark.parametrize("how", ["cancelled", "closed"])
def test_work_is_told_that_nobody_waits_any_more_and_what_it_says_goes_nowhere(how: str) -> None:
    go_on, ended = threading.Event(), threading.Event()
    told = []

    def work(say: Callable[[int], None], gone: Callable[[], bool]) -> None:
        told.append(gone())
        say(1)
        go_on.wait(30)
        say(2)
        told.append(gone())
        ended.set()

    job = in_thread(work)
    running = job.run()
    assert next(running) == 1
    if how == "closed":
        running.close()  # type: ignore[attr-defined]
        go_on.set()
    else:
        job.cancel()
        go_on.set()
        with pytest.raises(CancelledError):
            next(running)
    assert ended.wait(30)
    assert told == [False, True]
