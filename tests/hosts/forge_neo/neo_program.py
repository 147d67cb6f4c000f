"""Forge Neo as a subprocess: started in a data folder of the tests, driven over HTTP."""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import neo_loras as loras
import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent.parent
START_SECONDS = 400
OPTIONS = ["--cpu", "--skip-prepare-environment", "--skip-torch-cuda-test", "--skip-python-version-check"]
OPTIONS += ["--skip-version-check", "--nowebui", "--api", "--no-prompt-history", "--server-name", "127.0.0.1"]


def forge_folder() -> Path | None:
    """Return the installed Forge Neo that the tests may run, from FORGE_NEO_DIR."""
    named = os.environ.get("FORGE_NEO_DIR")
    return Path(named).resolve() if named else None


def forge_python(folder: Path) -> str:
    """Return the Python that has its packages: FORGE_NEO_PYTHON, else that of its own venv."""
    named = os.environ.get("FORGE_NEO_PYTHON")
    found = [folder / "venv" / "bin" / "python", folder / "venv" / "Scripts" / "python.exe"]
    return named or next((str(path) for path in found if path.exists()), "python")


def environment() -> dict[str, str]:
    """Return the environment of a run without hub and without GPU; the number of threads changes bits of a picture."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


def make_data(forge: Path, data: Path) -> None:
    """Write two small checkpoints, and LoRAs for them."""
    checkpoints, files = data / "models" / "Stable-diffusion", data / "models" / "Lora"
    for seed, name in enumerate("ab", 1):  # with seed 0 the last digit grows to whole pixels
        command = [
            forge_python(forge),
            str(HERE / "make_checkpoint.py"),
            str(forge),
            str(checkpoints / f"{name}.safetensors"),
        ]
        subprocess.run([*command, str(seed)], check=True, env=environment(), capture_output=True, text=True)
    first = checkpoints / "a.safetensors"
    loras.write(files / "A.safetensors", first)
    loras.write(files / "B.safetensors", first, seed=1, only="attn")
    loras.write(files / "C.safetensors", first, seed=2, only="unet")


class Forge:
    """One run of the program; a context manager."""

    def __init__(self, forge: Path, data: Path, *, ours: bool = True) -> None:
        self.forge, self.data = forge, data
        extensions = data / "extensions"
        extensions.mkdir(parents=True, exist_ok=True)
        for path in extensions.iterdir():
            path.unlink()
        (extensions / "probe").symlink_to(HERE / "probe")
        if ours:
            (extensions / "lora_runtime").symlink_to(REPOSITORY)
        (data / "config.json").unlink(missing_ok=True)  # it asks a person about one of another version

    def __enter__(self) -> Forge:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.log_path = self.data / "log.txt"
        self._log = self.log_path.open("w", encoding="utf-8")
        self.process = subprocess.Popen(
            [
                forge_python(self.forge),
                str(self.forge / "launch.py"),
                *OPTIONS,
                "--data-dir",
                str(self.data),
                "--port",
                str(port),
            ],
            cwd=self.data,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        try:
            self._wait()
            self.post("/sdapi/v1/options", live_previews_enable=False, samples_save=False)
            self.get("/probe/checkpoint", name="a")  # else any: it takes the first that the system lists
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._log.close()

    def _wait(self) -> None:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise RuntimeError(f"Forge Neo stopped:\n{self.log[-4000:]}")
            if "Uvicorn running" in self.log:
                return
            time.sleep(1.0)
        raise TimeoutError(f"Forge Neo is not ready:\n{self.log[-4000:]}")

    @property
    def log(self) -> str:
        """What the program has printed so far."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def get(self, path: str, **query: Any) -> Any:
        """Return the answer to a GET."""
        asked = f"{self.url}{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(asked, timeout=300) as answer:
            return json.loads(answer.read() or b"null")

    def post(self, path: str, **body: Any) -> Any:
        """Return the answer to a POST."""
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=600) as answer:
            return json.loads(answer.read() or b"null")

    def paint(self, prompt: str, **more: Any) -> Picture:
        """Paint 64 × 64 in 3 steps with seed 1."""
        body = {"width": 64, "height": 64, "steps": 3, "seed": 1, "cfg_scale": 4, "sampler_name": "Euler"}
        body |= {"scheduler": "Simple"}
        return Picture(self.post("/sdapi/v1/txt2img", prompt=prompt, **{**body, **more}))

    def state(self) -> dict[str, Any]:
        """Return what the probe sees."""
        return self.get("/probe/state")


class Picture:
    """What the API answers to a generation."""

    def __init__(self, answer: dict[str, Any]) -> None:
        self.info = json.loads(answer["info"])
        self.pixels = [
            np.asarray(Image.open(io.BytesIO(base64.b64decode(image)))).astype(int) for image in answer["images"]
        ]

    @property
    def notices(self) -> list[str]:
        """What the extension said."""
        return [notice["message"] for notice in self.info["extra_generation_params"].get("LoRA notices", [])]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Picture) and all(
            np.array_equal(a, b) for a, b in zip(self.pixels, other.pixels, strict=True)
        )

    __hash__ = None  # type: ignore[assignment]

    def difference(self, other: Picture) -> float:
        """Return the largest difference to another picture, in levels of 255."""
        return float(max(np.abs(a - b).max() for a, b in zip(self.pixels, other.pixels, strict=True)))
