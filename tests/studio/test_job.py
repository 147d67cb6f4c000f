"""Work in a thread: what it says, its end, and its failure."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from lora_runtime.studio.faults import CancelledError
from lora_runtime.studio.job import Job


def test_what_is_said_comes_in_order_and_the_result_last() -> None:
    def work(say: Callable[[int], None]) -> str:
        say(1)
        say(2)
        return "done"

    assert list(Job(work).run()) == [1, 2, "done"]


def test_what_the_work_raises_is_raised_where_it_is_waited_for() -> None:
    def work(say: Callable[[int], None]) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        list(Job(work).run())


def test_a_job_that_was_cancelled_before_it_began_does_nothing() -> None:
    began = []
    job: Job[int, None] = Job(lambda say: began.append(1))
    job.cancel()
    with pytest.raises(CancelledError):
        list(job.run())
    assert not began


@pytest.mark.parametrize("how", ["cancelled", "closed"])
def test_a_job_ends_where_it_says_something_next(how: str) -> None:
    go_on, ended = threading.Event(), threading.Event()

    def work(say: Callable[[int], None]) -> None:
        try:
            say(1)
            go_on.wait(30)
            say(2)
        finally:
            ended.set()

    job = Job(work)
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
