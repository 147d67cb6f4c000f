"""A module of torch by itself: a component of a pipeline where its class tells which, else just a model."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from torch import nn

from lora_runtime.dialects import ANY
from lora_runtime.pipelines.base import ModelView, compiled_later, plain
from lora_runtime.pipelines.family import family_of

__all__ = ["view_module"]

_SDXL_SECOND_ENCODER = 1280  # the width of OpenCLIP bigG


def view_module(model: Any) -> ModelView | None:
    """Return the module as a single component."""
    if not isinstance(model, nn.Module):
        return None
    module = plain(model)
    name = _component_name(module)
    family = family_of(module)
    title = type(module).__name__
    description = f"{title} ({name})" if family == "unknown" else f"{title} ({family}: {name})"
    return ModelView(
        MappingProxyType({name: module}),
        description,
        "model",
        family,
        compiled=compiled_later(model),
        wrapped=MappingProxyType({} if model is module else {name: model}),
    )


def _component_name(module: nn.Module) -> str:
    title = type(module).__name__
    if title.startswith("UNet"):
        return "unet"
    if "Transformer" in title and title.endswith("DModel"):
        return "transformer"
    if title.startswith("CLIPTextModel"):
        width = getattr(getattr(module, "config", None), "hidden_size", None)
        projected = title == "CLIPTextModelWithProjection"
        return "text_encoder_2" if projected and width == _SDXL_SECOND_ENCODER else "text_encoder"
    return ANY
