"""Checkpoints, and pipelines of other classes around the same components."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from modules import shared
from modules.modeldata import model_data
from modules.sd_offload import apply_balanced_offload, disable_offload, set_diffuser_offload

__all__ = ["apply_balanced_offload", "disable_offload", "set_diffuser_offload"]


def _no_driver(name: str) -> Any:
    raise NotImplementedError(name)


make_pipeline: Callable[[str], Any] = _no_driver  # the driver fills this in


def reload_model_weights() -> Any:
    """Drop the pipeline, and load the one that is chosen."""
    model_data.sd_model = None
    model_data.sd_model = make_pipeline(shared.opts.sd_model_checkpoint)
    set_diffuser_offload(model_data.sd_model)
    return model_data.sd_model


def set_diffuser_pipe(pipe: Any, kind: type[Any]) -> Any:
    """Return a pipeline of another class with the components of this one."""
    if type(pipe) is kind:
        return pipe
    made = kind(**pipe.components, requires_safety_checker=False)
    made.set_progress_bar_config(disable=True)
    made.has_accelerate = getattr(pipe, "has_accelerate", False)
    return made
