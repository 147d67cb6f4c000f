"""What acts beside the modules of one model now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from lora_runtime.beside.compiled import make_room, may_be_compiled
from lora_runtime.beside.module import Attached, make_attached
from lora_runtime.beside.terms import Keeper, LiveModule
from lora_runtime.errors import ModelError
from lora_runtime.hooks import Endings, end_all
from lora_runtime.stage import Call, Stage

__all__ = ["Live"]


class _Known(NamedTuple):
    """What acts beside a module, and what it was made of."""

    attached: Attached
    identity: tuple[object, ...]

    def is_for(self, live: LiveModule, keeper: Keeper) -> bool:
        """Return whether it is what would be made for that again."""
        return self.attached.acts and self.attached.beside(live.module) and self.identity == _identity(live, keeper)


class Live:
    """What acts beside the modules of one model now."""

    def __init__(self) -> None:
        """Start with nothing."""
        self.stages: dict[str, Stage] = {}  # by component, of those that have live modules
        self._known: dict[int, _Known] = {}  # by id(module)
        self._endings: Endings = []

    @property
    def count(self) -> int:
        """The number of modules beside which something acts."""
        return len(self._known)

    @property
    def dense_bytes(self) -> int:
        """The bytes of all changes that have no cheaper form than a weight."""
        return sum(known.attached.dense_bytes for known in self._known.values())

    @property
    def nbytes(self) -> Counter[torch.device]:
        """The bytes of all that acts, by the device that its module is on."""
        found: Counter[torch.device] = Counter()
        for known in self._known.values():
            found[known.attached.device] += known.attached.nbytes
        return found

    def apply(self, modules: Sequence[LiveModule], keeper: Keeper, *, compiled: bool = False) -> None:
        """Let just these act from now on; `compiled` as in a ModelView."""
        self._end()
        wanted = {id(live.module): live for live in modules}
        for key, known in list(self._known.items()):
            live = wanted.get(key)
            if live is None or not known.is_for(live, keeper):
                known.attached.detach()
                del self._known[key]
        components = {live.component for live in modules}
        self.stages = {name: self.stages.get(name) or Stage() for name in sorted(components)}
        for key, live in wanted.items():
            if key not in self._known:
                identity = _identity(live, keeper)
                try:
                    attached = make_attached(
                        live.module,
                        self.stages[live.component],
                        live.terms,
                        keeper,
                        bases=live.bases,
                        unmerged=live.unmerged,
                        compiled=compiled,
                    )
                except ModelError as error:
                    raise ModelError(str(error), error.sha256 or _needs_weight(live)) from error
                self._known[key] = _Known(attached, identity)  # before it begins: an interrupt may come in between
                attached.begin()
        if wanted and may_be_compiled():
            make_room(frozenset(wanted))
        for stage in self.stages.values():
            stage.begin(Call())

    def until_then(self, ending: Callable[[], None]) -> None:
        """Have this called when what acts now ends: by another `apply`, or `clear`."""
        self._endings.append(ending)

    def clear(self) -> None:
        """Let nothing act any more."""
        self._end()
        for known in self._known.values():
            known.attached.detach()
        self._known.clear()
        self.stages = {}

    def _end(self) -> None:
        end_all(self._endings)


def _needs_weight(live: LiveModule) -> str:
    """Return the hash of the first file that needs W₀, which could not be read."""
    asked: list[Any] = list(live.identity)
    for name, terms in live.terms.items():
        identities = [identity for own, identity in asked if own == name]
        for term, identity in zip(terms, identities, strict=True):
            if term.adapter.base_dependent or term.pieces:
                return str(identity[0])
    return ""


def _identity(live: LiveModule, keeper: Keeper) -> tuple[object, ...]:
    """Return what tells these terms from others; of those that depend on W₀, its place and its count of writes too.

    The count is the parameter's: what it shows may be another tensor, but who writes weights writes there.
    """
    weights = [
        (
            id(parameter) if name in live.bases else keeper.original(parameter).data_ptr(),
            0 if parameter.is_inference() else parameter._version,
        )
        for name, terms in live.terms.items()
        for term in terms
        if term.adapter.base_dependent
        for parameter in (live.module._parameters.get(name), *(piece.parameter for piece in term.pieces))
        if parameter is not None
    ]
    return *live.identity, live.unmerged, *weights
