"""Programs that the extension lives in, as subprocesses: started in a data folder of the tests, driven over HTTP."""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from typing_extensions import Self

REPOSITORY = Path(__file__).resolve().parent.parent.parent


def folder_of(variable: str) -> Path | None:
    """Return the installed program that an environment variable names, None where it is not set."""
    named = os.environ.get(variable)
    return Path(named).resolve() if named else None


def python_of(variable: str, folder: Path) -> str:
    """Return the Python that has a program's packages: the variable's, else that of the folder's own venv."""
    places = [folder / name / "bin" / "python" for name in (".venv", "venv")]
    places += [folder / name / "Scripts" / "python.exe" for name in (".venv", "venv")]
    return os.environ.get(variable) or next((str(path) for path in places if path.exists()), "python")


def environment() -> dict[str, str]:
    """Return the environment of a run without hub and without GPU; the number of threads changes bits of a picture."""
    alone = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return {**os.environ, **alone, "PYTHONWARNINGS": "ignore"}


def run_script(python: str, script: Path, *arguments: str) -> str:
    """Run a script with a program's Python; return what it prints. RuntimeError with what it says where it fails."""
    done = subprocess.run([python, str(script), *arguments], env=environment(), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{script.name} failed:\n{done.stderr[-4000:]}")
    return done.stdout


class Program(ABC):
    """One run of a program; a context manager."""

    name: str
    variable: str  # names its folder, with _PYTHON in the place of _DIR its Python
    start_seconds = 400
    answer_seconds = 600

    def __init__(self, folder: Path, data: Path) -> None:
        """`folder`: where it is installed; `data`: what it works in, and where its log is."""
        self.folder, self.data = folder, data
        self.log_path = data / "log.txt"
        self.url = ""

    @classmethod
    def python(cls, folder: Path) -> str:
        """Return the Python that has its packages."""
        return python_of(cls.variable.removesuffix("_DIR") + "_PYTHON", folder)

    @abstractmethod
    def arguments(self) -> Sequence[str | Path]:
        """Return its script and what it is started with, but for the port."""

    @abstractmethod
    def is_ready(self) -> bool:
        """Return whether it answers; asked for again and again, it may raise OSError for "not yet"."""

    def began(self) -> None:  # noqa: B027 - most have nothing to do
        """Do what a test expects to be done at first; it is ready."""

    @property
    def working_folder(self) -> Path:
        """Where it is started."""
        return self.data

    def __enter__(self) -> Self:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._log = self.log_path.open("w", encoding="utf-8")
        self.process = subprocess.Popen(
            [self.python(self.folder), *map(str, self.arguments()), "--port", str(port)],
            cwd=self.working_folder,
            # Stars and dates of use are not to be a user's own.
            env={**environment(), "LORA_RUNTIME_CACHE": str(self.data / "lora-runtime-cache")},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        try:
            self.wait()
            self.began()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._log.close()

    def wait(self) -> None:
        """Wait until it is ready."""
        end = time.monotonic() + self.start_seconds
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.name} stopped:\n{self.log[-4000:]}")
            try:
                if self.is_ready():
                    return
            except OSError:
                pass
            time.sleep(0.3)
        raise TimeoutError(f"{self.name} is not ready:\n{self.log[-4000:]}")

    @property
    def log(self) -> str:
        """What the program has printed so far."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    # --- HTTP ---

    def get(self, path: str, **query: Any) -> Any:
        """Return the answer to a GET; OSError with what it and the log say where it is refused."""
        return self._answer(f"{self.url}{path}?{urllib.parse.urlencode(query)}" if query else self.url + path)

    def post(self, path: str, /, **body: Any) -> Any:
        """Return the answer to a POST; OSError as in `get`."""
        header = {"Content-Type": "application/json"}
        return self._answer(urllib.request.Request(self.url + path, json.dumps(body).encode(), header))

    def _answer(self, request: str | urllib.request.Request) -> Any:
        try:
            with urllib.request.urlopen(request, timeout=self.answer_seconds) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")[:2000]
            raise OSError(f"{error}: {said}\n{self.log[-3000:]}") from None

    def state(self) -> dict[str, Any]:
        """Return what the probe sees."""
        found: dict[str, Any] = self.get("/probe/state")
        return found


class Pixels:
    """A picture or several, as whole numbers from 0 to 255; equal are those with equal pixels."""

    def __init__(self, pixels: Sequence[np.ndarray]) -> None:
        self.pixels = list(pixels)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pixels) and all(
            np.array_equal(a, b) for a, b in zip(self.pixels, other.pixels, strict=True)
        )

    __hash__ = None  # type: ignore[assignment]

    def difference(self, other: Pixels) -> float:
        """Return the largest difference to another, in levels of 255."""
        return float(max(np.abs(a - b).max() for a, b in zip(self.pixels, other.pixels, strict=True)))

    def mean_difference(self, other: Pixels) -> float:
        """Return the mean difference to another, in levels of 255."""
        return float(np.mean([np.abs(a - b).mean() for a, b in zip(self.pixels, other.pixels, strict=True)]))


class Painted(Pixels):
    """What the WebUIs' API answers to a generation."""

    def __init__(self, answer: dict[str, Any]) -> None:
        super().__init__([read_picture(io.BytesIO(base64.b64decode(image))) for image in answer["images"]])
        self.info = json.loads(answer["info"])
        self.parameters: dict[str, Any] = self.info["extra_generation_params"]


def write_words(lora: Path, own: Path, width: int) -> None:
    """Write two vectors twice: as the word `zqxword` in a LoRA file, and as an embedding of the user's own."""
    import torch
    from safetensors.torch import save_file

    vectors = torch.randn(2, width, generator=torch.Generator().manual_seed(5))
    for file, key in ((lora, "bundle_emb.zqxword.string_to_param.*"), (own, "emb_params")):
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: vectors}, file)


def read_picture(file: Path | io.BytesIO) -> np.ndarray:
    """Return a picture's pixels, (height, width, 3), in whole numbers that can be subtracted."""
    return np.asarray(Image.open(file)).astype(int)
