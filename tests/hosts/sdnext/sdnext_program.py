"""SD.Next as a subprocess: started in a data folder of the tests, driven over HTTP."""

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
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent.parent
DEMO = REPOSITORY / "lora_runtime" / "demo"
START_SECONDS = 600  # the first start compiles a kernel to see whether it can
OPTIONS = ["--skip-all", "--quick", "--use-cpu", "all", "--server-name", "127.0.0.1"]
CHECKPOINTS = "Diffusers/tiny-a", "Diffusers/tiny-b"


def sdnext_folder() -> Path | None:
    """Return the installed SD.Next that the tests may run, from SDNEXT_DIR."""
    named = os.environ.get("SDNEXT_DIR")
    return Path(named).resolve() if named else None


def sdnext_python(folder: Path) -> str:
    """Return the Python that has its packages: SDNEXT_PYTHON, else that of its own venv."""
    named = os.environ.get("SDNEXT_PYTHON")
    found = [folder / "venv" / "bin" / "python", folder / "venv" / "Scripts" / "python.exe"]
    return named or next((str(path) for path in found if path.exists()), "python")


def environment() -> dict[str, str]:
    """Return the environment of a run without hub and without GPU; the number of threads changes bits of a picture."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


def make_data(data: Path) -> None:
    """Put the demo's pipeline there under two names, and its LoRA files."""
    for name in CHECKPOINTS:
        shutil.copytree(DEMO / "pipeline", data / "models" / name)
    shutil.copytree(DEMO / "loras", data / "models" / "Lora")


class SDNext:
    """One run of the program; a context manager."""

    def __init__(self, program: Path, data: Path, *, ours: bool = True, **options: Any) -> None:
        """`options` are settings that differ from the program's own at the start."""
        self.program, self.data = program, data
        extensions = data / "extensions"
        extensions.mkdir(parents=True, exist_ok=True)
        for path in extensions.iterdir():
            path.unlink()
        (extensions / "probe").symlink_to(HERE / "probe")
        if ours:
            (extensions / "lora_runtime").symlink_to(REPOSITORY)
        settings = {"sd_model_checkpoint": CHECKPOINTS[0], "samples_save": False, "live_previews_enable": False}
        (data / "config.json").write_text(json.dumps({**settings, **options}), encoding="utf-8")

    def __enter__(self) -> SDNext:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.log_path = self.data / "log.txt"
        self._log = self.log_path.open("w", encoding="utf-8")
        models = self.data / "models"
        folders = ["--data-dir", self.data, "--models-dir", models, "--lora-dir", models / "Lora"]
        self.process = subprocess.Popen(
            [
                sdnext_python(self.program),
                str(self.program / "launch.py"),
                *OPTIONS,
                *map(str, folders),
                "--port",
                str(port),
            ],
            cwd=self.program,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        try:
            self._wait()
            self.get("/probe/checkpoint", name=CHECKPOINTS[0])
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
                raise RuntimeError(f"SD.Next stopped:\n{self.log[-4000:]}")
            if "Startup time:" in self.log:
                return
            time.sleep(1.0)
        raise TimeoutError(f"SD.Next is not ready:\n{self.log[-4000:]}")

    @property
    def log(self) -> str:
        """What the program has printed so far."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def get(self, path: str, **query: Any) -> Any:
        """Return the answer to a GET."""
        return self._answer(f"{self.url}{path}?{urllib.parse.urlencode(query)}")

    def post(self, path: str, **body: Any) -> Any:
        """Return the answer to a POST."""
        header = {"Content-Type": "application/json"}
        return self._answer(urllib.request.Request(self.url + path, json.dumps(body).encode(), header))

    def _answer(self, request: Any) -> Any:
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{error}: {error.read().decode(errors='replace')[:2000]}\n{self.log[-3000:]}") from None

    def paint(self, prompt: str, **more: Any) -> Picture:
        """Paint 48 × 48 in 4 steps with seed 1."""
        body = {"width": 48, "height": 48, "steps": 4, "seed": 1, "cfg_scale": 4, "sampler_name": "DDIM"}
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
    def notices(self) -> str:
        """What the extension said."""
        return str(self.info["extra_generation_params"].get("LoRA notices", ""))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Picture) and all(
            np.array_equal(a, b) for a, b in zip(self.pixels, other.pixels, strict=True)
        )

    __hash__ = None  # type: ignore[assignment]

    def difference(self, other: Picture) -> float:
        """Return the largest difference to another picture, in levels of 255."""
        return float(max(np.abs(a - b).max() for a, b in zip(self.pixels, other.pixels, strict=True)))
