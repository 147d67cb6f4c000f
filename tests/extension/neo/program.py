"""Starts the double of Forge Neo: what it shares with the WebUI is that one's double, the rest is in `double/`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from double.webui import WebUI, process
from torch import Tensor

HERE = Path(__file__).resolve().parent / "double"
_OURS = ("backend", "modules_forge")


@contextmanager
def neo_process(arguments: Sequence[str] = ()) -> Iterator[None]:
    """Make this process one in which the double can start; leave it as it was."""
    with process(arguments):
        before = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in _OURS}
        sys.path.insert(0, str(HERE))
        importlib.import_module("modules").__path__.insert(0, str(HERE / "modules"))  # type: ignore[attr-defined]
        try:
            yield
        finally:
            for name in [name for name in sys.modules if name.partition(".")[0] in _OURS]:
                del sys.modules[name]
            sys.modules.update(before)


class Neo(WebUI):
    """The program, from the start of its process. Use it inside `neo_process()`."""

    def __init__(self, data: Path, **given: Any) -> None:
        super().__init__(data, **given)

    @property
    def memory(self) -> Any:
        """What the program has of memory: `free` bytes, `conditions_a_call`."""
        return self.module("sd_models").memory

    @property
    def dynamic_args(self) -> Any:
        return importlib.import_module("backend.args").dynamic_args

    @property
    def loads(self) -> tuple[int, int]:
        """How often the denoiser and the text encoders were loaded."""
        objects = self.model.forge_objects_original
        return objects.unet.model.loads, objects.clip.patcher.model.loads

    def choose_checkpoint(self, name: str) -> None:
        """Choose another checkpoint in the UI; the next picture loads it."""
        self.options.sd_model_checkpoint = f"{name}.safetensors"

    def weights(self, model: Any = None) -> dict[str, Tensor]:
        """Return the weights that an engine has now, by the names in its checkpoint."""
        found: dict[str, Tensor] = (model or self.model).weights()
        return found

    def not_whole(self) -> list[str]:
        """Return the names of the weights that are not those of the checkpoint's file."""
        return self.changed()

    def plain(self) -> Mapping[str, Tensor]:
        """Return the weights in the file of the checkpoint that is loaded."""
        weights: Mapping[str, Tensor] = self.model.sd_checkpoint_info.weights
        return weights
