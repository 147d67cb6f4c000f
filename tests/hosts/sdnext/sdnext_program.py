"""SD.Next as a subprocess."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hosts.running import REPOSITORY, Painted, Program, folder_of, write_words

HERE = Path(__file__).resolve().parent
DEMO = REPOSITORY / "lora_runtime" / "demo"
OPTIONS = ["--skip-all", "--quick", "--use-cpu", "all", "--server-name", "127.0.0.1"]
CHECKPOINTS = "Diffusers/tiny-a", "Diffusers/tiny-b"


def sdnext_folder() -> Path | None:
    """Return the installed SD.Next that the tests may run."""
    return folder_of(SDNext.variable)


def make_data(data: Path) -> None:
    """Put the demo's pipeline there under two names, and its LoRA files."""
    for name in CHECKPOINTS:
        shutil.copytree(DEMO / "pipeline", data / "models" / name)
    shutil.copytree(DEMO / "loras", data / "models" / "Lora")
    config = json.loads((DEMO / "pipeline" / "text_encoder" / "config.json").read_text(encoding="utf-8"))
    own = data / "models" / "embeddings" / "ownword.safetensors"
    write_words(data / "models" / "Lora" / "words.safetensors", own, config["hidden_size"])


class SDNext(Program):
    """One run of the program."""

    name, variable = "SD.Next", "SDNEXT_DIR"
    start_seconds = 600  # the first start compiles a kernel to see whether it can

    def __init__(self, program: Path, data: Path, *, ours: bool = True, **options: Any) -> None:
        """`options` are settings that differ from the program's own at the start."""
        super().__init__(program, data)
        extensions = data / "extensions"
        extensions.mkdir(parents=True, exist_ok=True)
        for path in extensions.iterdir():
            path.unlink()
        (extensions / "probe").symlink_to(HERE / "probe")
        if ours:
            (extensions / "lora_runtime").symlink_to(REPOSITORY)
        settings = {"sd_model_checkpoint": CHECKPOINTS[0], "samples_save": False, "live_previews_enable": False}
        settings["server_rate_limit"] = 0  # else 300 requests a minute
        (data / "config.json").write_text(json.dumps({**settings, **options}), encoding="utf-8")

    @property
    def working_folder(self) -> Path:
        """Its own: it looks for its files there."""
        return self.folder

    def arguments(self) -> Sequence[str | Path]:
        """Return what it is started with."""
        models = self.data / "models"
        folders = ["--data-dir", self.data, "--models-dir", models, "--lora-dir", models / "Lora"]
        return [self.folder / "launch.py", *OPTIONS, *folders]

    def is_ready(self) -> bool:
        """Return whether it says how long its start has taken."""
        return "Startup time:" in self.log

    def began(self) -> None:
        """Load the first checkpoint."""
        self.get("/probe/checkpoint", name=CHECKPOINTS[0])

    def paint(self, prompt: str, **more: Any) -> Picture:
        """Paint 48 × 48 in 4 steps with seed 1."""
        body = {"width": 48, "height": 48, "steps": 4, "seed": 1, "cfg_scale": 4, "sampler_name": "DDIM"}
        return Picture(self.post("/sdapi/v1/txt2img", prompt=prompt, **{**body, **more}))


class Picture(Painted):
    """What the API answers to a generation."""

    @property
    def notices(self) -> str:
        """What the extension said."""
        return str(self.parameters.get("LoRA notices", ""))
