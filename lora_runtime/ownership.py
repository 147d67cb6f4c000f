"""Which state belongs to which live model, and which thread may change it now.

State is kept for each component (UNet, text encoder), not for each pipeline: pipelines share components, and what one
of them patches shows in all. Components that were ever applied to together share one state.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

from torch import nn

from lora_runtime.beside import Live
from lora_runtime.patcher import Originals, Patcher
from lora_runtime.pipelines import ModelView
from lora_runtime.plan import Plan
from lora_runtime.targets import Targets

__all__ = ["ModelState", "owned"]


class ModelState:
    """The patches of some components, who made them, and the lock that guards them.

    The lock may be taken again by the thread that has it, and released by any: a generator that a web server drives
    enters its `with` block in one thread and leaves it in another.
    """

    _serial = count()

    def __init__(self) -> None:
        """Start unpatched and unlocked."""
        self.patcher = Patcher()
        self.live = Live()
        self.holder: object | None = None  # a token of who patched: no reference to it, which would keep the model
        self._targets: tuple[tuple[str, ...], Targets] | None = None
        self.serial = next(self._serial)
        self._condition = threading.Condition()
        self._owner: int | None = None
        self._depth = 0

    def acquire(self) -> None:
        """Wait until no other thread has the model, then take it."""
        me = threading.get_ident()
        with self._condition:
            self._condition.wait_for(lambda: self._owner in (None, me))
            self._owner = me
            self._depth += 1

    def release(self) -> None:
        """Give back one `acquire`."""
        with self._condition:
            self._depth -= 1
            if self._depth == 0:
                self._owner = None
                self._condition.notify_all()

    def targets(self, view: ModelView) -> Targets:
        """Return the places of the model by every name that files use, found once while its modules are the same."""
        names = tuple(view.components)
        if self._targets is None or self._targets[0] != names or not self._targets[1].fits(view):
            self._targets = names, Targets(view)
        return self._targets[1]

    def apply(self, plan: Plan, originals: Originals = "auto", *, compiled: bool = False) -> None:
        """Make the model show this plan, replacing all earlier ones; if anything fails, it shows none.

        `compiled`: whether torch.compile made code of a part of it, as its view says.
        """
        try:
            self.patcher.apply(plan.assignments, originals)
            self.live.apply(plan.lives, self.patcher, compiled=compiled)
        except BaseException:
            self.restore()
            raise

    def restore(self, *, release: bool = False) -> int:
        """Give every weight its original back; return how many were patched. `release` frees the buffers too."""
        self.holder = None
        self.live.clear()
        return self.patcher.restore(release=release)


_states: weakref.WeakKeyDictionary[nn.Module, ModelState] = weakref.WeakKeyDictionary()  # by component
_states_lock = threading.Lock()


@contextmanager
def owned(view: ModelView) -> Iterator[ModelState]:
    """Give the one state of a model's components to this thread for the time of a `with` block; wait for it."""
    while True:
        with _states_lock:
            found = _states_of(view)
        for state in found:
            state.acquire()
        try:
            with _states_lock:
                unchanged = _states_of(view) == found
                if unchanged:
                    _unite(found, view)
            if unchanged:
                yield found[0]
                return
        finally:
            for state in found:
                state.release()


def _states_of(view: ModelView) -> list[ModelState]:
    """Return the states of the components, each once, in a fixed order, so that two threads cannot lock crosswise."""
    states = {_states[component] for component in view.components.values() if component in _states}
    if not states:
        states = {_states.setdefault(component, ModelState()) for component in list(view.components.values())[:1]}
    return sorted(states, key=lambda state: state.serial)


def _unite(states: list[ModelState], view: ModelView) -> None:
    """Make the first state that of all components of `states` and of `view`; the others are restored."""
    first, *others = states
    for other in others:
        other.restore(release=True)
    for component, state in list(_states.items()):
        if state in others:
            _states[component] = first
    for component in view.components.values():
        _states[component] = first
