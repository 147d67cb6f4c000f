"""What acts beside the modules of one model now."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import nn

from lora_runtime.beside.module import attach
from lora_runtime.beside.terms import Keeper, LiveModule
from lora_runtime.stage import Call, Stage

__all__ = ["Live"]


class _Attached(NamedTuple):
    module: weakref.ref[nn.Module]
    identity: tuple[object, ...]
    detach: Callable[[], None]


class Live:
    """What acts beside the modules of one model now."""

    def __init__(self) -> None:
        """Start with nothing."""
        self.stages: dict[str, Stage] = {}  # by component, of those that have live modules
        self._attached: dict[int, _Attached] = {}  # by id(module)
        self._endings: list[Callable[[], None]] = []
        self._compiled = False

    @property
    def count(self) -> int:
        """The number of modules beside which something acts."""
        return len(self._attached)

    def apply(self, modules: Sequence[LiveModule], originals: Keeper, *, compiled: bool = False) -> None:
        """Let just these act from now on; `compiled` as in a ModelView."""
        self._end()
        before = [attached.identity for attached in self._attached.values()]
        wanted = {id(live.module): live for live in modules}
        for key, attached in list(self._attached.items()):
            live = wanted.get(key)
            if live is None or attached.module() is not live.module or attached.identity != _identity(live, originals):
                attached.detach()
                del self._attached[key]
        components = {live.component for live in modules}
        self.stages = {name: self.stages.get(name) or Stage() for name in sorted(components)}
        for key, live in wanted.items():
            if key not in self._attached:
                stage = self.stages[live.component]
                detach = attach(live.module, stage, live.terms, originals, bases=live.bases, compiled=compiled)
                self._attached[key] = _Attached(weakref.ref(live.module), _identity(live, originals), detach)
        for stage in self.stages.values():
            stage.begin(Call())
        self._compiled = compiled
        if before != [attached.identity for attached in self._attached.values()]:
            self._compile_anew()

    def until_then(self, ending: Callable[[], None]) -> None:
        """Have this called when what acts now ends: by another `apply`, or `clear`."""
        self._endings.append(ending)

    def clear(self) -> None:
        """Let nothing act any more."""
        self._end()
        if self._attached:
            for attached in self._attached.values():
                attached.detach()
            self._attached.clear()
            self._compile_anew()
        self.stages = {}

    def _compile_anew(self) -> None:
        """Have compiled code forgotten: what was made before a hook was there would go on without it."""
        if self._compiled:
            torch.compiler.reset()

    def _end(self) -> None:
        while self._endings:
            self._endings.pop()()


def _identity(live: LiveModule, originals: Keeper) -> tuple[object, ...]:
    """Return what tells these terms from others; of those that depend on W₀, its place and its count of writes too.

    The count is the parameter's: what it shows may be another tensor, but who writes weights writes there.
    """
    weights = [
        (
            id(parameter) if name in live.bases else originals.original(parameter).data_ptr(),
            0 if parameter.is_inference() else parameter._version,
        )
        for name, terms in live.terms.items()
        for term in terms
        if term.adapter.base_dependent
        for parameter in (live.module._parameters.get(name), *(piece.parameter for piece in term.pieces))
        if parameter is not None
    ]
    return *live.identity, *weights
