"""Which models are loaded, and how much memory there is."""

from __future__ import annotations

import weakref
from types import SimpleNamespace
from typing import Any

import torch

# What a test leaves the program: bytes, conditions in one call, and in what a card computes LoRAs.
memory = SimpleNamespace(free=1e30, conditions_a_call=99, dynamic=False, computes_in=torch.float32)
loaded: list[LoadedModel] = []


class LoadedModel:
    """A clone that is loaded. When nobody has it any more, it is the one that it was made from, with no word to it."""

    def __init__(self, patcher: Any) -> None:
        self._set(patcher)

    def _set(self, patcher: Any) -> None:
        self._patcher = weakref.ref(patcher)
        if patcher.parent is not None:
            parent = weakref.ref(patcher.parent)
            weakref.finalize(patcher, self._switch, parent).atexit = False

    def _switch(self, reference: weakref.ref[Any]) -> None:
        parent = reference()
        if parent is not None:
            self._set(parent)

    @property
    def patcher(self) -> Any:
        return self._patcher()


def load_model(patcher: Any) -> None:
    """Load a clone; what is loaded of the same model goes first."""
    for one in [one for one in loaded if one.patcher is None or one.patcher.model is patcher.model]:
        loaded.remove(one)
        if one.patcher is not None and one.patcher is not patcher:
            one.patcher.detach()
    patcher.partially_load(memory.free)
    loaded.append(LoadedModel(patcher))
