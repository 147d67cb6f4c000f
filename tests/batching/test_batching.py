"""Who is in the next batch, what becomes of one that fails, and a line that is waited for in threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_runtime.batching.fitting import next_batch
from lora_runtime.batching.from_threads import LineInThread
from lora_runtime.batching.halving import Stopped, in_halves, reason_of
from lora_runtime.batching.line import Line, LineClosedError, LineFullError
from lora_runtime.errors import LoraError
from lora_runtime.prompt import LoraTag, parse_prompt

SECONDS = 60.0


@dataclass(frozen=True, eq=False)
class Wish:
    """A picture of some size."""

    size: int
    prompt: str = ""

    @property
    def shape(self) -> tuple[Any, ...]:
        return (self.size,)

    @property
    def tags(self) -> tuple[LoraTag, ...]:
        return parse_prompt(self.prompt).tags


wishes = st.builds(Wish, st.integers(1, 3), st.sampled_from(["", "<lora:a:1>", "<lora:b:1>", "<lora:b:1><lora:a:1>"]))


@given(st.lists(wishes, min_size=1, max_size=20), st.integers(1, 5))
def test_who_came_first_is_in_the_next_batch_with_as_many_as_fit(waiting: list[Wish], size: int) -> None:
    batch = next_batch(waiting, size)
    assert any(wish is waiting[0] for wish in batch)
    assert {wish.size for wish in batch} == {waiting[0].size}
    assert len(batch) <= size
    # One that is not full is all that is left of a kind over full ones.
    alike = sum(wish.size == waiting[0].size for wish in waiting)
    assert len(batch) in (size, alike % size)


@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_what_fails_fails_alone(good: list[bool]) -> None:
    def together(part: Sequence[tuple[int, bool]]) -> list[str]:
        if not all(fine for _, fine in part):
            raise ValueError(str(len(part)))
        return [f"{number} painted" for number, _ in part]

    found = in_halves(list(enumerate(good)), together, lambda one, error: f"{one[0]} {error}")
    assert found == [f"{number} painted" if fine else f"{number} 1" for number, fine in enumerate(good)]


def test_where_nobody_waits_nothing_is_halved() -> None:
    calls = []

    def together(part: Sequence[int]) -> list[int]:
        calls.append(len(part))
        raise Stopped

    with pytest.raises(Stopped):
        in_halves([1, 2, 3], together, lambda one, error: one)
    assert calls == [3]


def test_a_reason_is_one_line_and_has_the_kind_of_what_is_not_this_librarys() -> None:
    assert reason_of(LoraError("no\n such file")) == "no such file"
    assert reason_of(ValueError("no\n number")) == "ValueError: no number"
    assert reason_of(MemoryError()) == "MemoryError"


class Easel:
    """Paints sizes as texts, once it is free to."""

    def __init__(self) -> None:
        self.free, self.began = threading.Event(), threading.Event()
        self.batches: list[list[int]] = []

    def paint(self, asked: Sequence[Wish], stopped: Callable[[], bool] | None = None, /) -> list[str]:
        self.batches.append([wish.size for wish in asked])
        self.began.set()
        while not self.free.wait(0.005):
            if stopped is not None and stopped():
                raise Stopped
        return [f"size {wish.size}" for wish in asked]


def line_of(easel: Easel, **options: Any) -> LineInThread[Wish, str]:
    return LineInThread(Line(easel, **{"max_batch": 4, "max_queue": 5, **options}))


def test_what_waits_in_several_threads_is_painted_together() -> None:
    easel = Easel()
    line = line_of(easel)
    first = line.paint([Wish(1)])
    assert easel.began.wait(SECONDS)
    found: list[Future[list[str]]] = []
    threads = [threading.Thread(target=lambda: found.append(line.paint([Wish(2), Wish(2)]))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    while line.length < 5:
        pass
    easel.free.set()
    assert first.result(SECONDS) == ["size 1"]
    assert [future.result(SECONDS) for future in found] == [["size 2", "size 2"]] * 2
    assert easel.batches == [[1], [2, 2, 2, 2]]
    line.close()


def test_who_is_too_many_is_told_when_to_come_back() -> None:
    easel = Easel()
    line = line_of(easel, max_queue=1)
    first = line.paint([Wish(1)])
    assert easel.began.wait(SECONDS)
    with pytest.raises(LineFullError, match="0 images wait, and 1 are the most: try again in") as error:
        line.paint([Wish(1), Wish(2)]).result(SECONDS)
    assert error.value.seconds >= 1
    easel.free.set()
    assert first.result(SECONDS) == ["size 1"]
    line.close()


def test_a_future_that_is_cancelled_is_out_of_the_line() -> None:
    easel = Easel()
    line = line_of(easel)
    first = line.paint([Wish(1)])
    assert easel.began.wait(SECONDS)
    second = line.paint([Wish(2)])
    second.cancel()
    third = line.paint([Wish(2)])
    while line.length < 2:
        pass
    easel.free.set()
    assert (first.result(SECONDS), third.result(SECONDS)) == (["size 1"], ["size 2"])
    assert easel.batches == [[1], [2]]
    line.close()


def test_a_line_that_is_closed_sends_away_who_waits_and_ends_what_is_painted() -> None:
    easel = Easel()
    line = line_of(easel)
    in_hand = line.paint([Wish(1)])
    assert easel.began.wait(SECONDS)
    waiting = line.paint([Wish(2)])
    line.close()
    for future in (in_hand, waiting):
        with pytest.raises((LineClosedError, CancelledError)):
            future.result(SECONDS)
    with pytest.raises(LineClosedError, match="stopping"):
        line.paint([Wish(1)])
    line.close()


def test_a_line_that_nobody_has_waited_in_is_closed_too() -> None:
    line_of(Easel()).close()
