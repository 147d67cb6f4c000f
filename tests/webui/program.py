"""The real WebUI as a subprocess."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import loras
from hosts.running import REPOSITORY, Painted, Program, folder_of, run_script

HERE = Path(__file__).resolve().parent
COMMON = ["--skip-prepare-environment", "--skip-python-version-check", "--skip-torch-cuda-test", "--use-cpu", "all"]
COMMON += ["--api", "--no-download-sd-model", "--do-not-download-clip", "--no-prompt-history"]
COMMON += ["--disable-console-progressbars"]
FULL = ("--no-half", "--precision", "full")


def webui_folder() -> Path | None:
    """Return the installed WebUI that the tests may run."""
    return folder_of(WebUI.variable)


def make_checkpoints(webui: Path, data: Path) -> None:
    """Write the tiny checkpoints into a data folder, once."""
    if not (data / "models" / "Stable-diffusion" / "sdxl.yaml").exists():
        run_script(WebUI.python(webui), HERE / "make_checkpoints.py", str(webui), str(data))


class WebUI(Program):
    """One run of the program."""

    name, variable = "the WebUI", "SD_WEBUI_DIR"

    def __init__(
        self,
        webui: Path,
        data: Path,
        *,
        ours: bool = True,
        folder: str = "lora_runtime",
        builtin: bool = True,
        checkpoint: str = "sd1-a",
        arguments: Sequence[str] = FULL,
        options: dict[str, Any] | None = None,
        wait_for_checkpoint: bool = True,
        repository: Path = REPOSITORY,
    ) -> None:
        super().__init__(webui, data)
        self._wait_for_checkpoint = wait_for_checkpoint
        self._more, self._checkpoint = arguments, checkpoint
        self._starts = 0
        extensions = data / "extensions"
        shutil.rmtree(extensions, ignore_errors=True)
        extensions.mkdir(parents=True)
        (extensions / "probe").symlink_to(HERE / "probe")
        if ours:
            (extensions / folder).symlink_to(repository)
        config = {"disabled_extensions": [] if builtin else ["Lora"], "live_previews_enable": False, **(options or {})}
        (data / "config.json").write_text(json.dumps(config), encoding="utf-8")
        for left in ("cache.json", "ui-config.json", "params.txt"):
            (data / left).unlink(missing_ok=True)

    def arguments(self) -> Sequence[str | Path]:
        """Return what it is started with."""
        # The program's own scripts are served only below its working directory, which is the data folder here.
        given = [*COMMON, *self._more, "--data-dir", self.data, "--gradio-allowed-path", self.folder]
        checkpoint = self.data / "models" / "Stable-diffusion" / f"{self._checkpoint}.safetensors"
        return [self.folder / "launch.py", *given, "--ckpt", checkpoint]

    def is_ready(self) -> bool:
        """Return whether its API answers and a checkpoint is loaded, since the last start."""
        # Not before: a request that comes while the API is being built stops the program.
        if self.log.count("Startup time") <= self._starts:
            return False
        if not self.state()["checkpoint"] and self._wait_for_checkpoint:
            return False
        self._starts += 1
        return True

    # --- what tests do ---

    def txt2img(self, prompt: str, **more: Any) -> Picture:
        """Paint 64 × 64 in 4 steps with seed 1."""
        body = {"width": 64, "height": 64, "steps": 4, "seed": 1, "cfg_scale": 4, "sampler_name": "Euler"}
        answer = self.post("/sdapi/v1/txt2img", prompt=prompt, **{**body, **more})
        return Picture(answer)

    def set_options(self, **options: Any) -> None:
        """Change settings."""
        self.post("/sdapi/v1/options", **options)

    def digest(self) -> str:
        """Return a hash of all bits of the weights."""
        return str(self.state()["digest"])

    def weights(self) -> dict[str, Any]:
        """Return the weights by name."""
        import torch

        path = self.data / "weights.pt"
        self.post("/probe/save", path=str(path))
        return torch.load(path)

    def write_sd3(self) -> None:
        """Write a tiny SD3 checkpoint and LoRAs for it, once: its classes load only within the program."""
        checkpoint, files = self.data / "models" / "Stable-diffusion" / "sd3.safetensors", self.data / "models" / "Lora"
        if not checkpoint.exists():
            self.post("/probe/write-sd3", path=str(checkpoint))
            loras.write_sd3(files / "sd3.safetensors", checkpoint)
            loras.write_sd3(files / "sd3-native.safetensors", checkpoint, native=True, seed=1)
        self.post("/sdapi/v1/refresh-checkpoints")
        self.post("/sdapi/v1/refresh-loras")

    def reload_ui(self) -> None:
        """Do what the button Reload UI does, and wait until all is there again."""
        self.post("/probe/reload-ui")
        self.wait()


class Picture(Painted):
    """What the API answers to a generation."""

    def __init__(self, answer: dict[str, Any]) -> None:
        super().__init__(answer)
        self.infotext = self.info["infotexts"][0]

    @property
    def notices(self) -> list[dict[str, Any]]:
        """What the extension said."""
        found: list[dict[str, Any]] = self.parameters.get("LoRA notices", [])
        return found

    def difference(self, other: Painted) -> float:
        """Return the mean difference to another picture, in levels of 255."""
        return self.mean_difference(other)
