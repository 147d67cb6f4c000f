"""The checkpoint that SD.Next has loaded: the components of a pipeline of diffusers, under whatever class they are now.

The program makes another pipeline around the same components for a picture from a picture, for inpainting and for a
second pass, and drops the one before. What is shown belongs to the components, so a checkpoint is known by these.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from modules import modeldata
from torch import nn

from lora_runtime.errors import ModelError
from lora_runtime.pipelines import ModelView, view

__all__ = ["Checkpoint", "Checkpoints", "pipeline"]


def pipeline() -> Any | None:
    """Return the pipeline that is used now, None while none is loaded; it loads none.

    Some models are a wrapper with the pipeline in it.
    """
    model = modeldata.model_data.sd_model
    return getattr(model, "pipe", None) or model


def _ask(name: str) -> Any:
    return getattr(pipeline(), name, None)


class Checkpoint:
    """The components of one checkpoint; it keeps none of them."""

    def __init__(self, looked_at: ModelView) -> None:
        self.asked_builtin = False  # whether the program's own LoRA was asked what it has left there
        self.fused: tuple[str, ...] = ()  # LoRAs that it has written into the weights
        self.look(looked_at)

    def look(self, looked_at: ModelView) -> None:
        """Remember what the checkpoint consists of now."""
        self._rest = replace(looked_at, components={}, wrapped={}, ask=_ask)
        self._components = {name: weakref.ref(component) for name, component in looked_at.components.items()}
        self._wrapped = {name: weakref.ref(outer) for name, outer in looked_at.wrapped.items()}

    def view(self) -> ModelView:
        """Return those of its components that are still there."""
        return replace(
            self._rest,
            components=MappingProxyType(dict(_alive(self._components))),
            wrapped=MappingProxyType(dict(_alive(self._wrapped))),
        )


def _alive(references: dict[str, weakref.ref[nn.Module]]) -> Iterable[tuple[str, nn.Module]]:
    return ((name, module) for name, reference in references.items() if (module := reference()) is not None)


class Checkpoints:
    """The checkpoints that there are, each by the first of its components: the denoiser."""

    def __init__(self) -> None:
        self._known: weakref.WeakKeyDictionary[nn.Module, Checkpoint] = weakref.WeakKeyDictionary()

    def loaded(self) -> Checkpoint | None:
        """Return the checkpoint that is loaded, None while none is; ModelError for one that nobody can patch."""
        model = pipeline()
        if model is None:
            return None
        looked_at = view(model)
        for component in looked_at.components.values():
            if "Nunchaku" in type(component).__name__:
                raise ModelError(
                    f"{looked_at.description} is painted by the kernels of Nunchaku (SVDQuant), which apply LoRAs "
                    "themselves: LoRA Runtime cannot. Switch the extension off to use SD.Next's own LoRA with it"
                )
        first = next(iter(looked_at.components.values()))
        checkpoint = self._known.get(first)
        if checkpoint is None:
            checkpoint = self._known[first] = Checkpoint(looked_at)
        else:
            checkpoint.look(looked_at)
        return checkpoint
