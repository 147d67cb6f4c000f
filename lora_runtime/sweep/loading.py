"""A saved pipeline: a function at the top of a module, so that workers elsewhere can be told to call it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lora_runtime.errors import ModelError
from lora_runtime.pipelines.saved import device_and_dtype, load_saved
from lora_runtime.sweep.rows import SweepError

__all__ = ["load_pipeline", "loaders"]


def loaders(models: Sequence[str], device: str | None = None, dtype: str | None = None) -> dict[str, Callable[[], Any]]:
    """Return what loads each model, by name: of "NAME=DIR" the name, else that of the folder or the checkpoint file.

    A file of rows says names and no paths: it may be anybody's. SweepError for a name that is there twice.
    """
    found: dict[str, Callable[[], Any]] = {}
    for given in models:
        head, equals, tail = given.partition("=")
        named = bool(equals) and not re.search(r"[/\\]", head)  # else it is a path with an = in it
        place = Path(tail if named else given)
        name = head if named else place.resolve().stem if place.is_file() else place.resolve().name
        if name in found:
            raise SweepError(f'two models are called "{name}": name them, --model NAME=DIR')
        if not place.exists():
            raise SweepError(f"the model {place} does not exist")
        found[name] = partial(load_pipeline, str(place), device, dtype)
    return found


def load_pipeline(model: str, device: str | None = None, dtype: str | None = None) -> Any:
    """Return the pipeline of a folder or a checkpoint file on `device` (the first that is there); see `load_saved`.

    `dtype` is a name of torch's; left out, float16 on a GPU and float32 on the CPU. SweepError where it cannot be.
    """
    import torch

    place, kind = device_and_dtype(torch, device, dtype)
    try:
        return load_saved(model, kind).to(place)
    except (ModelError, RuntimeError) as error:  # RuntimeError: there is no such device, or no room on it
        raise SweepError(str(error)) from error
