"""A pipeline of diffusers: anything with a table `.components`. diffusers itself is not imported."""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from torch import nn

from lora_runtime.dialects import DENOISERS, denoiser_of
from lora_runtime.errors import ModelError
from lora_runtime.pipelines.base import ModelView, compiled_later, plain
from lora_runtime.pipelines.family import family_of

__all__ = ["view_pipeline"]

# What no adapter in circulation changes, and what must not be taken for a text encoder or a denoiser.
_LEFT_OUT = re.compile(r".*(vae|vqgan|vqvae|movq|vocoder|safety_checker|image_encoder|feature_extractor|controlnet).*")


def view_pipeline(model: Any) -> ModelView | None:
    """Return the pipeline's denoisers and text encoders, the denoisers first."""
    if isinstance(model, nn.Module):
        return None
    components = getattr(model, "components", None)
    if not isinstance(components, Mapping):
        return None
    found = {
        name: plain(module)
        for name, module in components.items()
        if isinstance(module, nn.Module) and _LEFT_OUT.fullmatch(name) is None
    }
    title = type(model).__name__
    if not found:
        raise ModelError(f"{title} has no denoiser and no text encoder that is loaded; nothing in it can be patched")
    found = dict(sorted(found.items(), key=lambda item: item[0] not in DENOISERS))  # a stable sort
    denoiser = denoiser_of(tuple(found))
    family = family_of(None if denoiser is None else found[denoiser])
    listed = ", ".join(found)
    description = f"{title} ({listed})" if family == "unknown" else f"{title} ({family}: {listed})"
    pipeline = _weakly(model)
    return ModelView(
        MappingProxyType(found),
        description,
        "pipeline",
        family,
        compiled=compiled_later(*(components[name] for name in found)),
        ask=lambda name: getattr(pipeline(), name, None),
        titles=tuple(kind.__name__ for kind in type(model).__mro__),
        wrapped=MappingProxyType({name: components[name] for name in found if components[name] is not found[name]}),
    )


def _weakly(model: Any) -> Callable[[], Any]:
    """Return what gives the pipeline while it lives: what is applied must not keep it."""
    try:
        return weakref.ref(model)
    except TypeError:  # of a class that cannot be referred to so
        return lambda: model
