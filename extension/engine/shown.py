"""What a model was made to show, and how to tell in a moment that it still does."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Iterable

from torch import nn

from lora_runtime.owners import Owner
from lora_runtime.pipelines import ModelView
from lora_runtime.plan import Plan
from lora_runtime.requests import Request

from .models import Held

__all__ = ["Shown", "identity"]


class Shown:
    """A plan that was carried out on a model."""

    def __init__(self, key: str, model: ModelView, plan: Plan, *, by_parameter: bool = True) -> None:
        """Remember what was asked of which parameters; of hosts that replace them, of which components alone."""
        self.report = plan.report
        self._key = key
        self._components = [weakref.ref(component) for component in model.components.values()]
        self._lives = len(plan.lives)
        self._places: list[tuple[dict[str, nn.Parameter | None], str, nn.Parameter]] = []
        if by_parameter:
            self._remember_parameters(plan)

    def _remember_parameters(self, plan: Plan) -> None:
        # The table of parameters of each module, the name and the parameter: hosts replace parameters.
        self._places = [
            (table, name, assignment.parameter)
            for assignment in plan.assignments
            for table in [assignment.target.module._parameters]
            for name in [next(name for name, own in table.items() if own is assignment.parameter)]
        ]
        self._places += [
            (live.module._parameters, name, parameter)
            for live in plan.lives
            for name in live.terms
            for parameter in [live.module._parameters[name]]
            if parameter is not None
        ]

    def is_still(self, key: str, model: ModelView, state: Held, owner: Owner) -> bool:
        """Return whether the model shows this: the same files and strengths, modules, parameters and values."""
        return (
            key == self._key
            and [component() for component in self._components] == list(model.components.values())
            and all(table.get(name) is parameter for table, name, parameter in self._places)
            and state.is_shown(owner)
            and owner.live.count == self._lives
        )


def identity(requests: Iterable[Request]) -> str:
    """Return a text that is equal only for the same file contents at the same strengths; "" for none."""
    parts = sorted(map(_identity, requests))
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogatepass")).hexdigest() if parts else ""


def _identity(request: Request) -> str:
    images = None if request.images is None else sorted(request.images)
    constant = f"{request.lora.sha256}:{request.te!r}:{request.unet!r}:{request.dyn}"
    return f"{constant}:{request.conditions!r}:{images}:{request.side}:{request.place!r}:{request.seed}"
