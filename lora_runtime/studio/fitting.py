"""Which files are made for the model that is chosen: by the headers of both, so that no model is loaded for it."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_runtime.catalog import Entry
from lora_runtime.errors import LoraError
from lora_runtime.families import UNKNOWN, family_called
from lora_runtime.families.dialect import DENOISERS
from lora_runtime.families.flux import FLUX
from lora_runtime.families.sd3 import SD3
from lora_runtime.families.unet import BY_TEXT_WIDTH, UNET
from lora_runtime.header import read_header
from lora_runtime.studio.models import Model, Models

if TYPE_CHECKING:
    from lora_runtime.workbench.base_model import BaseModel

__all__ = ["Fit", "Fitting"]

_MARKS = {"joint_blocks.": SD3.name, "double_blocks.": FLUX.name}  # of those checkpoints that can be loaded
_MOST_MODELS = 4  # that are remembered: each of several users may have chosen another one


class Fit:
    """What files are to one model; `family` is the model's, "" where nobody can tell it."""

    def __init__(self, outline: BaseModel | None = None, family: str = "") -> None:
        """Take the model's outline, None where it has none: then only its family speaks against files."""
        self._outline = outline
        self._known: dict[Any, str | None] = {}
        self.family = family

    def is_for_another(self, entry: Entry) -> bool:
        """Return whether a file is known to be made for another family."""
        return bool(self.family) and entry.family not in (UNKNOWN, self.family)

    def is_known(self, entry: Entry) -> bool:
        """Return whether `coverage` has its answer at once."""
        return self._is_made_for_it(entry) or _key(entry) in self._known

    def coverage(self, entry: Entry) -> str | None:
        """Return how much of a file fits ("812 of 844 keys, made for SDXL"), None where it is made for the model.

        Its header is read once: 20 ms for a file with 800 keys.
        """
        outline = self._outline
        if outline is None or self._is_made_for_it(entry):
            return None
        key = _key(entry)
        if key not in self._known:
            from lora_runtime.workbench.coverage import coverage_of

            self._known[key] = coverage_of(entry, outline.targets, self.family)
        return self._known[key]

    def _is_made_for_it(self, entry: Entry) -> bool:
        return self._outline is None or entry.family == self.family


class Fitting:
    """What files are to the models of a studio. Safe to use from several threads; what was found out is remembered."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self._lock = threading.Lock()
        self._known: dict[Path, Fit] = {}

    def of(self, model: str) -> Fit:
        """Return what files are to a model of this name; to one that is not there, no file is anything."""
        try:
            path = _path_of(self._models.named(model))
        except LoraError:
            return Fit()
        with self._lock:
            if path not in self._known:
                while len(self._known) >= _MOST_MODELS:
                    del self._known[next(iter(self._known))]
                self._known[path] = Fit(_outline(path), _family(path))
            return self._known[path]


def _path_of(model: Model) -> Path:
    if model.path is None:
        from lora_runtime.demo.scene_pipeline import PIPELINE

        return PIPELINE
    return model.path


def _outline(path: Path) -> BaseModel | None:
    from lora_runtime.workbench.base_model import open_model

    try:
        return open_model(path)
    except (LoraError, OSError):  # weights that are no safetensors, or of a kind that nobody knows
        return None


def _family(path: Path) -> str:
    """Return the family of a model on the disk: by the config of its denoiser, of a checkpoint by its tensors."""
    if path.is_dir():
        for part in DENOISERS:
            try:
                config = json.loads((path / part / "config.json").read_bytes())
                found = family_called([str(config["_class_name"])], config.get("cross_attention_dim"))
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                continue
            return "" if found is None or found is UNET else found.name
        return ""
    try:
        tensors = read_header(path).tensors
    except LoraError:
        return ""
    for key, info in tensors.items():
        if key.endswith("attn2.to_k.weight"):  # of a UNet: as wide as the text that it attends to
            return BY_TEXT_WIDTH.get(info.shape[-1], "")
        if family := next((name for mark, name in _MARKS.items() if mark in key), ""):
            return family
    return ""


def _key(entry: Entry) -> tuple[Path, tuple[int, int]]:
    return entry.path, entry.stamp
