"""Forge Neo as a subprocess."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import neo_loras as loras
from hosts.running import REPOSITORY, Painted, Program, folder_of, run_script, write_words

HERE = Path(__file__).resolve().parent
OPTIONS = ["--cpu", "--skip-prepare-environment", "--skip-torch-cuda-test", "--skip-python-version-check"]
OPTIONS += ["--skip-version-check", "--api", "--no-prompt-history", "--server-name", "127.0.0.1"]


def forge_folder() -> Path | None:
    """Return the installed Forge Neo that the tests may run."""
    return folder_of(Forge.variable)


def make_data(forge: Path, data: Path) -> None:
    """Write two small checkpoints, and LoRAs for them."""
    checkpoints, files = data / "models" / "Stable-diffusion", data / "models" / "Lora"
    for seed, name in enumerate("ab", 1):  # with seed 0 the last digit grows to whole pixels
        written = checkpoints / f"{name}.safetensors"
        run_script(Forge.python(forge), HERE / "make_checkpoint.py", str(forge), str(written), str(seed))
    first = checkpoints / "a.safetensors"
    loras.write(files / "A.safetensors", first)
    loras.write(files / "B.safetensors", first, seed=1, only="attn")
    loras.write(files / "C.safetensors", first, seed=2, only="unet")
    write_words(files / "words.safetensors", data / "models" / "embeddings" / "ownword.safetensors", 768)


class Forge(Program):
    """One run of the program."""

    name, variable = "Forge Neo", "FORGE_NEO_DIR"

    def __init__(self, forge: Path, data: Path, *, ours: bool = True, page: bool = False) -> None:
        """`page`: with its UI, of which the others have no need."""
        super().__init__(forge, data)
        self._page = page
        extensions = data / "extensions"
        extensions.mkdir(parents=True, exist_ok=True)
        for path in extensions.iterdir():
            path.unlink()
        (extensions / "probe").symlink_to(HERE / "probe")
        if ours:
            (extensions / "lora_runtime").symlink_to(REPOSITORY)
        (data / "tmp").mkdir(exist_ok=True)  # of pictures for the page, which its launcher makes
        (data / "config.json").unlink(missing_ok=True)  # it asks a person about one of another version

    def arguments(self) -> Sequence[str | Path]:
        """Return what it is started with."""
        # Its scripts are served only below its working directory, which is the data folder here.
        page = ["--gradio-allowed-path", self.folder] if self._page else ["--nowebui"]
        return [self.folder / "launch.py", *OPTIONS, *page, "--data-dir", self.data]

    def is_ready(self) -> bool:
        """Return whether it serves its API."""
        return ("Startup time" if self._page else "Uvicorn running") in self.log

    def began(self) -> None:
        """Choose a checkpoint: else it takes the first that the system lists."""
        self.post("/sdapi/v1/options", live_previews_enable=False, samples_save=False)
        self.get("/probe/checkpoint", name="a")

    def paint(self, prompt: str, **more: Any) -> Picture:
        """Paint 64 × 64 in 3 steps with seed 1."""
        body = {"width": 64, "height": 64, "steps": 3, "seed": 1, "cfg_scale": 4, "sampler_name": "Euler"}
        body |= {"scheduler": "Simple"}
        return Picture(self.post("/sdapi/v1/txt2img", prompt=prompt, **{**body, **more}))


class Picture(Painted):
    """What the API answers to a generation."""

    @property
    def notices(self) -> list[str]:
        """What the extension said."""
        return [notice["message"] for notice in self.parameters.get("LoRA notices", [])]
