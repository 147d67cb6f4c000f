"""Weights that SD.Next has taken out of their modules, for a while: home to be patched, and away again.

Sequential offloading, and balanced offloading of a model that is larger than its device, leave placeholders on torch's
meta device in the modules and keep the values in accelerate's maps. Patches are made while the values are in the
modules, so that they go where these go; all other ways to offload move a module's tensors, patched or not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from modules import sd_models, sd_offload, shared
from torch import nn

from lora_runtime.pipelines import ModelView
from lora_runtime.routes.facts import hooks_of

__all__ = ["at_home"]


@contextmanager
def at_home(pipeline: Any, looked_at: ModelView) -> Iterator[None]:
    """Have the weights of those components that are a pipeline's in their modules for the time of a `with` block."""
    own = {id(component) for component in getattr(pipeline, "components", {}).values()}
    away = [part for name, part in looked_at.components.items() if id(looked_at.outer(name)) in own and _is_away(part)]
    if not away:
        yield
    elif shared.opts.diffusers_offload_mode == "sequential":
        sd_offload.disable_offload(pipeline)
        try:
            yield
        finally:
            sd_models.set_diffuser_offload(pipeline, op="model")
    else:
        for component in away:
            sd_offload.apply_balanced_offload_to_module(component, op="lora", force=True)
        yield


def _is_away(component: nn.Module) -> bool:
    return any(
        getattr(hook, "offload", False) and getattr(hook, "weights_map", None) is not None
        for module in component.modules()
        for hook in hooks_of(module)
    )
