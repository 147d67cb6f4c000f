"""Starts the double of SD.Next with the extension in it, paints with it, and restarts it."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import tiny
from torch import Tensor

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent.parent
_OURS = ("modules", "lora_runtime", "lora_runtime_webui_extension")


@contextmanager
def sdnext_process() -> Iterator[None]:
    """Make this process one in which the double can start; leave it as it was."""

    def ours() -> list[str]:
        return [name for name in sys.modules if name.partition(".")[0] in _OURS]

    before = {name: sys.modules.pop(name) for name in ours()}
    path = sys.path[:]
    sys.path.insert(0, str(HERE / "double"))
    try:
        yield
    finally:
        sys.path[:] = path
        for name in ours():
            del sys.modules[name]
        sys.modules.update(before)


class SDNext:
    """The program, from the start of its process. Use it inside `sdnext_process()`."""

    def __init__(self, data: Path, *, ours: bool = True, **options: Any) -> None:
        """`ours`: whether the extension is installed; `options` are settings that differ from the program's own."""
        self.loras = data / "models" / "Lora"
        self.loras.mkdir(parents=True, exist_ok=True)
        self.extensions = [REPOSITORY] if ours else []
        paths, shared, sd_models = self.module("paths"), self.module("shared"), self.module("sd_models")
        paths.script_path, paths.data_path, paths.models_path = str(data), str(data), str(data / "models")
        shared.cmd_opts = SimpleNamespace(lora_dir=str(self.loras))
        shared.opts.data.update(options)
        sd_models.make_pipeline = lambda name: tiny.pipeline()
        self.log: list[str] = []
        self._listen()
        self.start()

    def _listen(self) -> None:
        said = self.log

        class Handler(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                said.append(f"{record.levelname} {record.getMessage()}")

        log = self.module("logger").log
        log.handlers, log.propagate = [Handler()], False
        log.setLevel(logging.INFO)

    def start(self) -> None:
        """Load the scripts, then the program's own owners of tags, then build the UI."""
        extra_networks = self.module("extra_networks")
        self.module("scripts_manager").load_scripts(self.extensions)
        extra_networks.initialize()
        extra_networks.register_default_extra_networks()
        self.module("script_callbacks").run("before_ui")

    def restart(self) -> None:
        """Restart the server: the checkpoint stays loaded."""
        self.module("script_callbacks").run("script_unloaded")
        self.start()

    @staticmethod
    def module(name: str) -> ModuleType:
        """Return one of the program's modules."""
        return importlib.import_module(f"modules.{name}")

    @property
    def options(self) -> Any:
        return self.module("shared").opts

    @property
    def model(self) -> Any:
        """The pipeline that is used; it is loaded if there is none."""
        return self.module("modeldata").model_data.get_sd_model()

    @property
    def owner(self) -> Any:
        """Who has the tag `lora`."""
        return self.module("extra_networks").extra_network_registry["lora"]

    def reload(self) -> None:
        """Load the checkpoint again: the button in System."""
        self.module("sd_models").reload_model_weights()

    def job(self, prompt: Any, **given: Any) -> Any:
        """Paint; return the job, with `painted` in it."""
        processing = self.module("processing")
        p = processing.StableDiffusionProcessing(prompt, **given)
        p.painted = processing.process_images(p)
        return p

    def paint(self, prompt: Any, **given: Any) -> Tensor:
        """Return the latents of the last pass, (batch, 4, height, width)."""
        latents: Tensor = self.job(prompt, **given).painted.latents[-1]
        return latents

    def weights(self) -> Mapping[str, Tensor]:
        """Return copies of the denoiser's and the text encoder's weights."""
        parts = (("unet", self.model.unet), ("text", self.model.text_encoder))
        return {
            f"{name}.{key}": tensor.detach().clone()
            for name, part in parts
            for key, tensor in part.state_dict().items()
        }

    @staticmethod
    def notices(p: Any) -> str:
        """What the extension said of a job, as it is saved with the picture."""
        return str(p.extra_generation_params.get("LoRA notices", ""))
