"""A pipeline from a folder: a function at the top of a module, so that workers elsewhere can be told to call it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lora_runtime.pipelines.saved import best_device, dtype_argument
from lora_runtime.sweep.rows import SweepError

__all__ = ["load_pipeline", "loaders"]


def loaders(models: Sequence[str], device: str | None = None, dtype: str | None = None) -> dict[str, Callable[[], Any]]:
    """Return what loads each model, by name: of "NAME=DIR" the name, else that of the folder.

    A file of rows says names and no paths: it may be anybody's. SweepError for a name that is there twice.
    """
    found: dict[str, Callable[[], Any]] = {}
    for given in models:
        head, equals, tail = given.partition("=")
        named = bool(equals) and not re.search(r"[/\\]", head)  # else it is a path with an = in it
        folder = tail if named else given
        name = head if named else Path(folder).resolve().name
        if name in found:
            raise SweepError(f'two models are called "{name}": name them, --model NAME=DIR')
        if not Path(folder).is_dir():
            raise SweepError(f"the model folder {folder} does not exist")
        found[name] = partial(load_pipeline, folder, device, dtype)
    return found


def load_pipeline(model: str, device: str | None = None, dtype: str | None = None) -> Any:
    """Return the pipeline that diffusers has saved in a folder, on `device` (the first that is there).

    `dtype` is a name of torch's; left out, float16 on a GPU and float32 on the CPU. SweepError where it cannot be.
    """
    import diffusers
    import torch

    if not Path(model).is_dir():
        raise SweepError(f"the model folder {model} does not exist")
    device = device or best_device(torch)
    dtype = dtype or ("float32" if device == "cpu" else "float16")
    try:
        pipe = diffusers.DiffusionPipeline.from_pretrained(
            model, local_files_only=True, **dtype_argument(diffusers.__version__, getattr(torch, dtype))
        ).to(device)
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError, TypeError, ImportError) as error:
        raise SweepError(f"the model in {model} cannot be loaded: {' '.join(str(error).split())}") from error
    pipe.set_progress_bar_config(disable=True)
    return pipe
