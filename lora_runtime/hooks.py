"""Hooks that no copy of their module takes along.

`copy.deepcopy(unet)` and `torch.save(unet)` take the hooks of a module with it: the own state of a hook would be copied
or pickled too, and the copy would go on doing what was asked of the original. So a module with a hook of ours gives, as
long as it has one, its state without it: a copy is the plain module.

Both ways of copying ask the object for `__getstate__`, and find one that lies on the instance.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

__all__ = ["Endings", "end_all", "hook_after", "hook_before", "hook_moves"]

_ASKED = "__getstate__"
_MOVES = "_apply"  # what `.to`, `.half`, `.cuda` and the like call in each module
_TABLES = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)


Endings = list[Callable[[], None]]
"""What ends what was begun: put there before it begins, since an interrupt may come at any line."""


def hook_after(module: nn.Module, hook: Callable[..., Any], endings: Endings, *, first: bool = False) -> None:
    """Call `hook(module, args, kwargs, output)` after each call of the module, until the ending is called.

    `first`: before the hooks that others have put there already.
    """
    _hidden(module, hook, "_forward_hooks", partial(module.register_forward_hook, prepend=first), endings)


def hook_before(module: nn.Module, hook: Callable[..., Any], endings: Endings) -> None:
    """Call `hook(module, args, kwargs)` before each call of the module, until the ending is called."""
    _hidden(module, hook, "_forward_pre_hooks", module.register_forward_pre_hook, endings)


def end_all(endings: Endings) -> None:
    """Call what ends hooks, the last first, and empty the list."""
    while endings:
        endings[-1]()  # before it is forgotten: an interrupt may come in between
        endings.pop()


def hook_moves(module: nn.Module, before: Callable[[], Callable[[], None]], endings: Endings) -> None:
    """Call `before()` before the module's tensors are moved or cast, and what that returns after, until the ending.

    torch has no hook for `.to`. It calls `_apply` of each module, which is looked up on the instance first.
    """
    watch = vars(module).get(_MOVES)
    if watch is not None and not isinstance(watch, _Moves):  # somebody else's, which is not ours to put aside
        return
    reference = weakref.ref(module)  # what ends a hook must not keep the module

    def remove() -> None:
        owner = reference()
        if owner is None:
            return
        watch = vars(owner).get(_MOVES)
        if isinstance(watch, _Moves) and before in watch.calls:
            watch.calls.remove(before)
        if isinstance(watch, _Moves) and not watch.calls:
            del vars(owner)[_MOVES]
        if not isinstance(vars(owner).get(_MOVES), _Moves):
            _leave(owner, _MOVES)

    endings.append(remove)
    vars(module).setdefault(_ASKED, _PlainState(module)).others.add(_MOVES)
    vars(module).setdefault(_MOVES, _Moves(module)).calls.append(before)


def _hidden(module: nn.Module, hook: Callable[..., Any], table: str, put: Callable[..., Any], endings: Endings) -> None:
    """Put a hook on a module and keep it out of the module's state."""
    numbers: list[int] = []
    reference, mark = weakref.ref(module), weakref.ref(hook)  # what ends a hook must not keep either

    def remove() -> None:
        owner = reference()
        if owner is None:
            return
        state = vars(owner).get(_ASKED)
        hidden = state.hidden if isinstance(state, _PlainState) else set()
        # Without a number the interrupt came before it was known: then it is the one that nobody knows of.
        own = numbers or [
            number for number, other in getattr(owner, table).items() if other is mark() and number not in hidden
        ]
        for number in own:
            for each in _TABLES:
                getattr(owner, each, {}).pop(number, None)
            hidden.discard(number)
        _leave(owner)

    endings.append(remove)
    state = vars(module).setdefault(_ASKED, _PlainState(module))
    numbers.append(put(hook, with_kwargs=True).id)
    state.hidden.add(numbers[0])


def _leave(module: nn.Module, other: str = "") -> None:
    """Take the state back once nothing of ours is on the module."""
    state = vars(module).get(_ASKED)
    if isinstance(state, _PlainState):
        state.others.discard(other)
        if not state.hidden and not state.others:
            del vars(module)[_ASKED]


class _Moves:
    """Stands before a module's `_apply`."""

    def __init__(self, module: nn.Module) -> None:
        self._module = weakref.ref(module)
        self.calls: list[Callable[[], Callable[[], None]]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module = self._module()
        assert module is not None  # it is calling
        afters = [before() for before in self.calls]
        own: Callable[..., Any] = type(module)._apply
        result = own(module, *args, **kwargs)
        for after in afters:
            after()
        return result


class _PlainState:
    """What a module says when it is asked for its state: all but our hooks, and but this."""

    def __init__(self, module: nn.Module) -> None:
        self._module = weakref.ref(module)
        self.hidden: set[int] = set()  # the ids of our hooks
        self.others: set[str] = set()  # the names of what else of ours lies on the instance

    def __call__(self) -> Any:
        module = self._module()
        assert module is not None  # it is asking
        own = getattr(type(module), _ASKED, None)  # from Python 3.11 on every class has one
        state = dict(vars(module)) if own is None else own(module)
        if not isinstance(state, dict):
            return state
        plain = {name: value for name, value in state.items() if not isinstance(value, (_PlainState, _Moves))}
        for name in _TABLES:
            table = plain.get(name)
            if table is not None:
                # In the same class: torch takes them for ordered dictionaries.
                plain[name] = type(table)((key, value) for key, value in table.items() if key not in self.hidden)
        return plain
