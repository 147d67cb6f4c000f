"""Pipelines: one file a kind of host model. A new one is a file with a function and a line in `HOSTS`."""

from __future__ import annotations

from typing import Any

from lora_runtime.errors import ModelError
from lora_runtime.pipelines.base import Host, ModelView, WeakView
from lora_runtime.pipelines.diffusers import view_pipeline
from lora_runtime.pipelines.ldm import view_ldm
from lora_runtime.pipelines.module import view_module
from lora_runtime.pipelines.transformers import view_generation

__all__ = ["HOSTS", "ModelView", "WeakView", "view"]

HOSTS: tuple[Host, ...] = (view_pipeline, view_ldm, view_generation, view_module)


def view(model: Any) -> ModelView:
    """Return what adapters can change in a model; ModelError where it is of no known kind."""
    for host in HOSTS:
        found = host(model)
        if found is not None:
            return found
    raise ModelError(
        f"cannot patch a {type(model).__module__}.{type(model).__qualname__}: "
        "give a diffusers pipeline (anything with a table .components), a pipeline of transformers or a torch.nn.Module"
    )
