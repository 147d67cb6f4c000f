"""The real WebUI as a subprocess: started in a data folder of the tests, driven over HTTP."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import loras
import numpy as np
from PIL import Image

REPOSITORY = Path(__file__).resolve().parent.parent.parent
HERE = Path(__file__).resolve().parent
START_SECONDS = 180
COMMON = ["--skip-prepare-environment", "--skip-python-version-check", "--skip-torch-cuda-test", "--use-cpu", "all"]
COMMON += ["--api", "--no-download-sd-model", "--do-not-download-clip", "--no-prompt-history"]
COMMON += ["--disable-console-progressbars"]
FULL = ("--no-half", "--precision", "full")


def webui_folder() -> Path | None:
    """Return the installed WebUI that the tests may run, from SD_WEBUI_DIR."""
    named = os.environ.get("SD_WEBUI_DIR")
    return Path(named).resolve() if named else None


def webui_python(folder: Path) -> str:
    """Return the Python that has the WebUI's packages: SD_WEBUI_PYTHON, else that of its own venv."""
    named = os.environ.get("SD_WEBUI_PYTHON")
    found = [folder / "venv" / "bin" / "python", folder / "venv" / "Scripts" / "python.exe"]
    return named or next((str(path) for path in found if path.exists()), "python")


def environment() -> dict[str, str]:
    """Return the environment of a run without hub and without GPU."""
    return {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONWARNINGS": "ignore",
        "OMP_NUM_THREADS": "1",
    }


def make_checkpoints(webui: Path, data: Path) -> None:
    """Write the tiny checkpoints into a data folder, once."""
    if not (data / "models" / "Stable-diffusion" / "sdxl.yaml").exists():
        command = [webui_python(webui), str(HERE / "make_checkpoints.py"), str(webui), str(data)]
        subprocess.run(command, check=True, env=environment(), capture_output=True, text=True)


class WebUI:
    """One run of the program; a context manager."""

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
        self.webui, self.data, self.wait_for_checkpoint = webui, data, wait_for_checkpoint
        # The program's own scripts are served only below its working directory, which is the data folder here.
        self.arguments = [*COMMON, *arguments, "--data-dir", str(data), "--gradio-allowed-path", str(webui)]
        self.arguments += ["--ckpt", str(data / "models" / "Stable-diffusion" / f"{checkpoint}.safetensors")]
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

    def __enter__(self) -> WebUI:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.log_path = self.data / "log.txt"
        self._log = self.log_path.open("w", encoding="utf-8")
        self._starts = 0
        self.process = subprocess.Popen(
            [webui_python(self.webui), str(self.webui / "launch.py"), *self.arguments, "--port", str(port)],
            cwd=self.data,
            env=environment(),
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        try:
            self.wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._log.close()

    def wait(self) -> None:
        """Wait until the API answers and a checkpoint is loaded."""
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise RuntimeError(f"the WebUI stopped:\n{self.log[-4000:]}")
            # Not before: a request that comes while the API is being built stops the program.
            if self.log.count("Startup time") > self._starts:
                try:
                    if self.get("/probe/state")["checkpoint"] or not self.wait_for_checkpoint:
                        self._starts += 1
                        return
                except (OSError, urllib.error.URLError):
                    pass
            time.sleep(0.3)
        raise TimeoutError(f"the WebUI is not ready:\n{self.log[-4000:]}")

    @property
    def log(self) -> str:
        """What the program has printed so far."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    # --- HTTP ---

    def get(self, path: str) -> Any:
        """Return the answer to a GET."""
        with urllib.request.urlopen(self.url + path, timeout=120) as answer:
            return json.loads(answer.read() or b"null")

    def post(self, route: str, **body: Any) -> Any:
        """Return the answer to a POST."""
        request = urllib.request.Request(
            self.url + route, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=300) as answer:
            return json.loads(answer.read() or b"null")

    # --- what tests do ---

    def txt2img(self, prompt: str, **more: Any) -> Picture:
        """Paint 64 × 64 in 4 steps with seed 1."""
        body = {"width": 64, "height": 64, "steps": 4, "seed": 1, "cfg_scale": 4, "sampler_name": "Euler"}
        answer = self.post("/sdapi/v1/txt2img", prompt=prompt, **{**body, **more})
        return Picture(answer)

    def set_options(self, **options: Any) -> None:
        """Change settings."""
        self.post("/sdapi/v1/options", **options)

    def state(self) -> dict[str, Any]:
        """Return what the probe sees: checkpoint, digest of its weights, devices."""
        return self.get("/probe/state")

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


class Picture:
    """What the API answers to a generation."""

    def __init__(self, answer: dict[str, Any]) -> None:
        self.info = json.loads(answer["info"])
        self.pixels = [
            np.asarray(Image.open(io.BytesIO(base64.b64decode(image)))).astype(int) for image in answer["images"]
        ]
        self.infotext = self.info["infotexts"][0]

    @property
    def notices(self) -> list[dict[str, Any]]:
        """What the extension said."""
        return self.info["extra_generation_params"].get("LoRA notices", [])

    def difference(self, other: Picture) -> float:
        """Return the mean difference to another picture, in levels of 255."""
        return float(np.mean([np.abs(a - b).mean() for a, b in zip(self.pixels, other.pixels, strict=True)]))
