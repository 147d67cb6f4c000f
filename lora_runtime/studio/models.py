"""Which models can be chosen: the embedded one and those in the places that were given. One at a time is in memory."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_runtime.blocks import blocks_in
from lora_runtime.errors import LoraError
from lora_runtime.studio.faults import StudioError
from lora_runtime.studio.samplers import SAMPLERS, fitting

__all__ = ["EMBEDDED", "Model", "Models", "find_models"]

EMBEDDED = "embedded"
_DEEPEST = 3  # folders below a place that was given
_SIDE = 512  # pixels, where nothing says it


@dataclass(frozen=True)
class Model:
    """A model that can be chosen, and what it was made for; `path` is None for the embedded one."""

    name: str
    path: Path | None = None
    side: int = _SIDE  # pixels
    guidance: float = 7.0
    example: str = ""
    samplers: tuple[str, ...] = tuple(SAMPLERS)


_DEMO = Model(EMBEDDED, None, 48, 4.0, "a boat on the sea under a sun <lora:watercolor:0.8>")


def find_models(places: Sequence[str | os.PathLike[str]]) -> list[Model]:
    """Return the models in these places: pipelines as diffusers saves them, and single .safetensors files.

    A place is one of these or a folder of them. Without any, it is the embedded model. StudioError for a place that is
    not there.
    """
    if not places:
        return [_DEMO]
    found: dict[str, Model] = {}
    for place in map(Path, places):
        if not place.exists():
            raise StudioError(f"the model {place} does not exist: give a folder or a .safetensors file")
        for path in _models_in(place, _DEEPEST):
            inner = path.relative_to(place).as_posix()
            name = path.name if inner == "." else inner
            for same in range(2, len(found) + 3):
                if name not in found:
                    break
                name = f"{name.removesuffix(f' ({same - 1})')} ({same})"
            found[name] = Model(name, path, _side_of(path), samplers=fitting(_scheduler_of(path)))
    return list(found.values())


class Models:
    """The models of one studio. Who uses one has it alone: nobody else's LoRAs show on it meanwhile."""

    def __init__(
        self,
        places: Sequence[str | os.PathLike[str]] = (),
        *,
        device: str | None = None,
        dtype: str | None = None,
        load: Callable[[Model], Any] | None = None,
    ) -> None:
        """Look the places up; raises StudioError where there is no model. Loads nothing."""
        self._places = tuple(places)
        self._load = load or (lambda model: load_model(model, device, dtype))
        self._lock = threading.Lock()
        self._name, self._pipe = "", None
        self._blocks: list[str] = []
        if not self.all:
            raise StudioError(
                f"there is no model in {', '.join(map(str, self._places))}: a model is a folder with "
                "model_index.json, or a .safetensors file"
            )

    @property
    def all(self) -> dict[str, Model]:
        """The models that are there now, by name."""
        return {model.name: model for model in find_models(self._places)}

    @property
    def blocks(self) -> list[str]:
        """The blocks of the model in memory, none before one is."""
        return self._blocks

    def named(self, name: str) -> Model:
        """Return the model of this name. Names are looked up, and never made into paths."""
        found = self.all.get(name)
        if found is None:
            raise StudioError(f"there is no model {name!r}: choose one of {', '.join(self.all)}")
        return found

    @contextmanager
    def using(self, name: str) -> Iterator[Any]:
        """Give the pipeline of a model, loaded if another one is in memory."""
        model = self.named(name)
        with self._lock:
            if self._name != name:
                self._name, self._pipe = "", None  # before the next one needs the memory
                self._pipe = self._load(model)
                self._name, self._blocks = name, _blocks_of(self._pipe)
            yield self._pipe


def load_model(model: Model, device: str | None = None, dtype: str | None = None) -> Any:
    """Return the pipeline of a model on `device` (the first that is there); StudioError where it cannot be loaded."""
    if model.path is None:
        import torch

        from lora_runtime.demo.scene_pipeline import load_pipeline as load_embedded
        from lora_runtime.pipelines.saved import device_and_dtype

        return load_embedded(*device_and_dtype(torch, device, dtype))
    from lora_runtime.sweep.loading import load_pipeline

    try:
        return load_pipeline(str(model.path), device, dtype)
    except LoraError as error:
        raise StudioError(str(error)) from error


def _models_in(path: Path, deeper: int) -> Iterator[Path]:
    """Yield the models at or below a path in the order of their names; what a pipeline's folder has is its own."""
    if path.is_file():
        if path.suffix.lower() == ".safetensors":
            yield path
    elif (path / "model_index.json").is_file():
        yield path
    elif deeper and path.is_dir():
        for inner in sorted(path.iterdir()):
            if not inner.name.startswith("."):
                yield from _models_in(inner, deeper - 1)


def _side_of(path: Path) -> int:
    """Return the side of the pictures that a model was trained for, as its configuration says it."""
    for part in ("unet", "transformer"):
        try:
            size = json.loads((path / part / "config.json").read_bytes())["sample_size"]
            blocks = json.loads((path / "vae" / "config.json").read_bytes())["block_out_channels"]
            return int(size) << (len(blocks) - 1)
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return _SIDE


def _blocks_of(pipe: Any) -> list[str]:
    parts = getattr(pipe, "components", {})
    modules = ((name, part) for name, part in parts.items() if hasattr(part, "named_modules"))
    return blocks_in((name, path) for name, part in modules for path, _ in part.named_modules())


def _scheduler_of(path: Path) -> str:
    """Return the class of a saved pipeline's scheduler, "" where nothing says it."""
    try:
        return str(json.loads((path / "scheduler" / "scheduler_config.json").read_bytes())["_class_name"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
