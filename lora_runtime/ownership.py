"""Who may change which parameters now.

A claim is held for the time of a `with` block, or of one apply. It is of a scope: two claims exclude each other where
their scopes meet, and nowhere else. It belongs to a context (`contextvars`), not to a thread: child tasks,
`asyncio.to_thread` and whatever else copies the context have the claims of their parent; a sibling task has not.

A scope is claimed as a whole, under one lock, in the order of asking: there is no order of locks to get wrong. Blocks
inside of blocks can still wait for each other crosswise; the last to ask is told so at once, by an error.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from lora_runtime.errors import ModelBusyError
from lora_runtime.scopes import Outline

__all__ = ["WAIT", "Claim", "claimed", "current_line", "mine", "would_wait"]

WAIT = 600.0
"""Seconds to wait for a model that somebody else has, unless a caller says how long."""


class Claim:
    """The right to change what is in a scope, held by one line of calls until `release`."""

    def __init__(self, scope: Outline, what: str) -> None:
        self.scope = scope
        self.what = what
        self.who = _me()
        self.loop = _running_loop()
        self.since = time.monotonic()

    def __str__(self) -> str:
        """Return who holds it, for what, and for how long by now."""
        return f"{self.who} has held it for {time.monotonic() - self.since:.1f} s, for {self.what}"

    def take(self, wait: float | None = WAIT, also: Iterable[Claim] = ()) -> None:
        """Wait until nobody else has a claim that meets this, and take it; `also`: claims that count as one's own.

        Whoever takes it has a `finally` around that which releases it: an interrupt may come at any moment.

        Raises ModelBusyError after `wait` seconds (None: never); at once where waiting could not end: where the holder
        is a task of the event loop that would be blocked, or waits for what is held here.
        """
        woken = threading.Event()
        waiter = _ask(self, also, woken.set)
        if waiter is not None:
            with _lock:
                blockers = _blockers(self.scope, waiter.held, waiter)
            same = next((other for other in blockers if self.loop is not None and other.loop is self.loop), None)
            if same is not None:
                raise ModelBusyError(
                    f"the model is in use: {same}. It is a task of the event loop that waiting here would stop: use "
                    '"async with lora_runtime.apply(...)"'
                )
            if not woken.wait(wait):
                raise _too_long(waiter, wait)
        _holding.set((*mine(), self))

    async def take_later(self, wait: float | None = WAIT, also: Iterable[Claim] = ()) -> None:
        """Take it as `take` does, while the event loop goes on."""
        loop = asyncio.get_running_loop()
        woken: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            loop.call_soon_threadsafe(lambda: None if woken.done() else woken.set_result(None))

        waiter = _ask(self, also, wake)
        if waiter is not None:
            try:
                await asyncio.wait_for(woken, wait)
            except asyncio.TimeoutError:
                raise _too_long(waiter, wait) from None
        _holding.set((*mine(), self))

    def release(self) -> None:
        """Give it back, or leave the line where it was not had yet; any thread may do it, more than once.

        Whoever calls it calls it again where it raises: that is an interrupt, and nobody else would give it back.
        """
        with _lock:
            _waiters[:] = [waiter for waiter in _waiters if waiter.claim is not self]
            if self in _claims:
                _claims.remove(self)
            _grant()
        _holding.set(tuple(held for held in _holding.get() if held is not self))


class _Waiter:
    """One that waits, with the claims that it holds meanwhile."""

    def __init__(self, claim: Claim, held: tuple[Claim, ...], wake: Callable[[], None]) -> None:
        self.claim = claim
        self.held = held
        self.wake = wake


_lock = threading.Lock()
_claims: list[Claim] = []
_waiters: list[_Waiter] = []
_holding: contextvars.ContextVar[tuple[Claim, ...]] = contextvars.ContextVar("lora_runtime_claims", default=())


def mine() -> tuple[Claim, ...]:
    """Return the claims of this line of calls."""
    return tuple(claim for claim in _holding.get() if claim in _claims)


@contextmanager
def claimed(scope: Outline, what: str, wait: float | None = WAIT, also: Iterable[Claim] = ()) -> Iterator[Claim]:
    """Hold a scope for the time of a `with` block; see `Claim.take`."""
    claim = Claim(scope, what)
    try:
        claim.take(wait, also)
        yield claim
    finally:
        try:
            claim.release()
        except BaseException:
            claim.release()
            raise


def would_wait(scope: Outline, also: Iterable[Claim] = ()) -> bool:
    """Return whether somebody else has a part of a scope now."""
    with _lock:
        return bool(_blockers(scope, (*mine(), *also), None))


def _ask(claim: Claim, also: Iterable[Claim], wake: Callable[[], None]) -> _Waiter | None:
    """Take a claim, or stand in line for it; ModelBusyError where the line would never move."""
    held = (*mine(), *(other for other in also if other in _claims))
    waiter = _Waiter(claim, held, wake)
    with _lock:
        blockers = _blockers(claim.scope, held, None)
        if not blockers:
            _claims.append(claim)
            return None
        circle = _circle(held, blockers)
        if circle is not None:
            raise ModelBusyError(
                f"the model is in use: {circle}. It waits for what this block holds in turn, so neither would ever go "
                "on: enter blocks of several models in the same order everywhere"
            )
        _waiters.append(waiter)
        return waiter


def _blockers(scope: Outline, held: tuple[Claim, ...], waiter: _Waiter | None) -> list[Claim]:
    """Return the claims of others that meet a scope; for who holds nothing those of who asked earlier too."""
    found = [claim for claim in _claims if claim not in held and claim.scope.meets(scope)]
    if not any(claim in _claims for claim in held):
        for earlier in _waiters:
            if earlier is waiter:
                break
            if earlier.claim.scope.meets(scope):
                found.append(earlier.claim)
    return found


def _circle(held: tuple[Claim, ...], blockers: list[Claim]) -> Claim | None:
    """Return the first of the blockers that leads back to a claim held here: its holders wait for that."""
    for first in blockers:
        seen, pending = {first}, [first]
        while pending:
            claim = pending.pop()
            for other in _waiters:
                if claim is not other.claim and claim not in other.held:
                    continue
                for following in _blockers(other.claim.scope, other.held, other):
                    if following in held:
                        return first
                    if following not in seen:
                        seen.add(following)
                        pending.append(following)
    return None


def _grant() -> None:
    """Give claims to those in line who need not wait any longer."""
    for waiter in list(_waiters):
        if not _blockers(waiter.claim.scope, waiter.held, waiter):
            _waiters.remove(waiter)
            try:
                waiter.wake()
            except RuntimeError:  # its event loop is closed: nobody is there any more
                continue
            waiter.claim.since = time.monotonic()
            _claims.append(waiter.claim)


def _too_long(waiter: _Waiter, wait: float | None) -> ModelBusyError:
    with _lock:
        blockers = _blockers(waiter.claim.scope, waiter.held, waiter)
    holder = str(blockers[0]) if blockers else "it was given back just now"
    return ModelBusyError(
        f"the model is in use: {holder}. Waited {wait:g} s: give wait= more seconds, or leave that block earlier"
    )


def current_line() -> tuple[int, int]:
    """Return what tells the running thread and task from others that are there."""
    return threading.get_ident(), id(_task())


def _task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


def _me() -> str:
    """Return the name of the task, or of the thread, that is running."""
    task = _task()
    return f'thread "{threading.current_thread().name}"' if task is None else f'task "{task.get_name()}"'


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
