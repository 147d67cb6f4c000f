"""What the LoRAs of a prompt do together on the model that is loaded: `report`, for who paints with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lora_runtime.errors import LoraError, LoraFileError
from lora_runtime.pipelines import ModelView
from lora_runtime.requests import Request
from lora_runtime.routes.storage import layer_shape
from lora_runtime.scopes import PATCHER
from lora_runtime.targets import Target
from lora_runtime.workbench import Model, Reported, report
from lora_runtime.workbench.matching import matched_modules

from ..prompts.notices import Notice
from .judging import Source, cannot
from .models import OWN_WEIGHTS, Models

__all__ = ["LoadedModel", "reported"]

_SECONDS = 120.0


class LoadedModel(Model):
    """A host's model as the workbench sees models. It is held for no longer than one weight takes."""

    whole = True

    def __init__(self, looked_at: ModelView, models: Models = OWN_WEIGHTS) -> None:
        with models.hold(looked_at) as state:
            super().__init__(looked_at, state.targets)
        self._models = models

    def sizes(self, place: Target, name: str) -> torch.Size | None:
        """Return the shape that the layer has for it, however it is stored."""
        return layer_shape(place.module, name)

    def value(self, place: Target, name: str) -> Tensor | None:
        """Return a copy of W₀ on the CPU, whatever shows; None where the host keeps it, or it is somewhere else now."""
        parameter = place.module._parameters.get(name)
        if parameter is None or not self._models.parameters_stay:
            return None
        with self._models.hold(self.view):
            route = self.targets.route(place, name)
            if route.base is not None:
                return route.base().detach().to("cpu", copy=True)
            return None if parameter.is_meta else PATCHER.original(parameter).detach().to("cpu", copy=True)


def reported(
    model: Any, requests: Sequence[Request], source: Source, models: Models = OWN_WEIGHTS
) -> tuple[Reported | None, list[Notice]]:
    """Return the report of what these do to a model, None where there is nothing to report of; and what to say.

    `requests` are those of `Loader.load`. A file that has no place there, or no one strength, costs itself.
    """
    notices: list[Notice] = []
    looked_at = LoadedModel(models.view(model), models)
    asked = []
    for request in requests:
        try:
            modules = matched_modules([request], looked_at)
            if not any(module.parts[0].change.has_place() for module in modules):
                raise LoraFileError(f'"{request.lora.name}" has nothing for this checkpoint ({looked_at})')
            asked.append(request)
        except LoraError as error:
            notices.append(cannot(request, f"not in the report: {error}", source))
    if not asked:
        return None, [*notices, Notice("note", "there is nothing to report of")]
    try:
        return report(asked, model=looked_at, seconds=_SECONDS), notices
    except (LoraError, TimeoutError) as error:
        return None, [*notices, Notice("error", f"no report: {error}", "lora-runtime report takes as long as it needs")]
