"""How the models of a host are looked at, and held while something is done to them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from lora_runtime.beside import Live
from lora_runtime.held import owned
from lora_runtime.owners import Owner
from lora_runtime.pipelines import ModelView, view
from lora_runtime.plan import Plan
from lora_runtime.targets import Targets

__all__ = ["OWN_WEIGHTS", "Held", "Models"]


class Held(Protocol):
    """A model that is held: what it is, and what it shows. See `lora_runtime.held.ModelState`."""

    @property
    def targets(self) -> Targets:
        """The places of the model by every name that files use."""
        ...

    def is_shown(self, owner: Owner) -> bool:
        """Return whether all that an owner asks shows."""
        ...

    def show(
        self, owner: Owner, plan: Plan, *, compiled: Callable[[], bool] = ..., began: Callable[[Live], None] = ...
    ) -> Plan:
        """Make the model show a plan, as far as there is memory; return what it shows. Nothing where it raises."""
        ...

    def restore(self, *, release: bool = False) -> int:
        """Give every weight its original back; return how many were patched."""
        ...


@dataclass(frozen=True)
class Models:
    """What is done with the models of a host.

    `view` gives what adapters can change in one, `hold` holds it for the time of a `with` block. `parameters_stay`: a
    parameter is the same object as long as its module is there; where the host keeps the weights it is not.
    """

    view: Callable[[Any], ModelView]
    hold: Callable[[ModelView], AbstractContextManager[Held]]
    parameters_stay: bool = True


OWN_WEIGHTS = Models(view, owned)
"""Models whose parameters are ours to bind."""
