"""The embedded pipeline, loaded once, and a workshop that has it."""

from __future__ import annotations

import asyncio
import gc
import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from lora_runtime import LoraCatalog
from lora_runtime.demo.scene_pipeline import LORAS, PIPELINE
from lora_runtime.studio.models import Models
from lora_runtime.studio.settings import Settings
from lora_runtime.studio.workshop import Workshop

STEPS, SEED = 3, 4  # of a page: few, so that its tests are quick


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """On models this small a second thread only waits for the first, and long where others have the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="module")
def _swept() -> Iterator[None]:
    """Close what gradio leaves open, an event loop of this thread, before another test is blamed for it."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with suppress(RuntimeError):  # there is none
            asyncio.get_event_loop().close()
        asyncio.set_event_loop(None)
        gc.collect()


@pytest.fixture(scope="session")
def pipe() -> Any:
    """Return the embedded pipeline, as a folder that somebody has given."""
    with Models([PIPELINE], device="cpu").using("pipeline") as found:
        return found


@pytest.fixture(scope="session")
def loras() -> LoraCatalog:
    return LoraCatalog(LORAS)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return what serves a page with options, within a `with` block."""
    return partial(_served, tmp_path_factory.mktemp("gradio"))


@contextmanager
def _served(temporary: Path, **options: Any) -> Iterator[tuple[Any, str]]:
    """Serve a page for a while; what gradio's threads leave behind is collected where its warnings are ignored."""
    from lora_runtime.studio.server import Options, Studio

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = int(found.getsockname()[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(temporary))
        studio = Studio(Options(port=port, **options))
        for name, value in {"steps": STEPS, "seed": SEED}.items():
            studio.page.settings[name].value = value
        try:
            yield studio, studio.serve()
        finally:
            studio.close()
            gc.collect()


@pytest.fixture
def shop(pipe: Any, loras: LoraCatalog) -> Iterator[Workshop]:
    found = Workshop(Models(load=lambda model: pipe), loras)
    yield found
    found.close()


@pytest.fixture
def asked() -> Settings:
    """A picture that takes two steps."""
    return Settings("a red circle", width=48, height=48, steps=2, guidance=4.0, seed=4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one LoRA, `ink`."""
    tiny.write_kohya_lora(tmp_path / "ink.safetensors", tiny.unet("sd1"), components=("unet",))
    return tmp_path


@pytest.fixture
def client() -> Callable[..., Any]:
    """Return what makes a client of an app to which something adds its routes, for somebody with or without a login."""
    import fastapi
    from fastapi.testclient import TestClient

    def made(add: Callable[[Any], None], logged_in: bool = True) -> Any:
        app = fastapi.FastAPI()

        @app.get("/login_check")  # as gradio's app asks whether somebody is logged in
        def login_check() -> None:
            if not logged_in:
                raise fastapi.HTTPException(401)

        add(app)
        return TestClient(app, raise_server_exceptions=False)

    return made
