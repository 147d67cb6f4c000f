"""What acts beside the modules of a model while a clone is the one that is loaded.

The program calls `inject` when it has loaded a clone and `eject` before it loads another one; further clones of that
clone share both. It forgets `eject` where a clone is loaded and nobody has it any more, so its end is watched for too.
What acts now lies with the model itself.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

from torch import nn

from lora_runtime.beside import Live, LiveModule
from lora_runtime.hosted import HostKeeper
from lora_runtime.pipelines.base import compiled
from lora_runtime.stage import Stage

from ...console import say
from ...engine.judging import told
from .originals import Originals

__all__ = ["Beside", "Placed"]

_NO_MODULE = nn.Identity()
_SLOT = "_lora_runtime_beside"


@dataclass(frozen=True)
class Placed:
    """What acts beside one module, and the program's name for it; the module itself is not kept."""

    path: str
    live: LiveModule

    @classmethod
    def of(cls, path: str, live: LiveModule, keeper: HostKeeper) -> Placed:
        """Return a LiveModule without the module and the parameters in it."""
        terms = {
            name: tuple(replace(term, pieces=keeper.by_place(term.pieces)) for term in own)
            for name, own in live.terms.items()
        }
        return cls(path, replace(live, module=_NO_MODULE, terms=terms))

    def on(self, root: nn.Module) -> LiveModule:
        """Return it with the module of a model: the program may make another one for the same weights."""
        return replace(self.live, module=reduce(getattr, self.path.split("."), root))


class _Slot:
    """What acts beside the modules of one model now, and by whom."""

    def __init__(self) -> None:
        self.live = Live()
        self.by: Beside | None = None
        self.watch: weakref.finalize[Any, Any] | None = None

    def end(self, by: Beside) -> None:
        """Let nothing act any more, unless somebody else has come since."""
        if self.by is by:
            self.live.clear()
            self.by = None
            if self.watch is not None:
                self.watch.detach()
                self.watch = None


class Beside:
    """What one clone asks beside the modules of the model that it is loaded with."""

    def __init__(self, placed: Sequence[Placed]) -> None:
        self._placed = tuple(placed)

    def inject(self, patcher: Any) -> None:
        """Let it act, and nothing else of ours; what cannot act is left out, and said."""
        root = patcher.model
        slot: _Slot = root.__dict__.setdefault(_SLOT, _Slot())
        modules = [placed.on(root) for placed in self._placed]
        keeper = HostKeeper((live.module for live in modules), Originals([patcher]))
        made = compiled(root)
        try:
            slot.live.apply(modules, keeper, compiled=made)
        except Exception as error:  # the program is in the middle of its loading, and has other LoRAs to show
            say(f"beside weights: {told(error)}; left out there")
            slot.live.apply(list(_that_can(modules, keeper)), keeper, compiled=made)
        if slot.watch is not None:
            slot.watch.detach()
        slot.by, slot.watch = self, weakref.finalize(patcher, slot.end, self)
        slot.watch.atexit = False

    def eject(self, patcher: Any) -> None:
        """Let it act no more."""
        slot: _Slot | None = patcher.model.__dict__.get(_SLOT)
        if slot is not None:
            slot.end(self)

    def stages_on(self, root: nn.Module) -> Iterable[Stage]:
        """Return the stages of what acts on a model now; none where it is another's."""
        slot: _Slot | None = root.__dict__.get(_SLOT)
        return () if slot is None or slot.by is not self else slot.live.stages.values()


def _that_can(modules: Iterable[LiveModule], keeper: HostKeeper) -> Iterable[LiveModule]:
    """Yield those beside which something can act."""
    for live in modules:
        alone = Live()
        try:
            alone.apply([live], keeper)
        except Exception:  # `inject` has said why
            continue
        finally:
            alone.clear()
        yield live
