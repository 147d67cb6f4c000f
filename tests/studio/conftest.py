"""The embedded pipeline, loaded once, and a workshop that has it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from lora_runtime import LoraCatalog
from lora_runtime.demo.scene_pipeline import LORAS, load_pipeline
from lora_runtime.studio.models import Models
from lora_runtime.studio.settings import Settings
from lora_runtime.studio.workshop import Workshop


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """On models this small a second thread only waits for the first, and long where others have the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def pipe() -> Any:
    return load_pipeline()


@pytest.fixture(scope="session")
def loras() -> LoraCatalog:
    return LoraCatalog(LORAS)


@pytest.fixture(scope="module")
def free_port() -> int:
    """Return a port of this machine that nobody listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture
def shop(pipe: Any, loras: LoraCatalog) -> Iterator[Workshop]:
    found = Workshop(Models(load=lambda model: pipe), loras)
    yield found
    found.close()


@pytest.fixture
def asked() -> Settings:
    """A picture that takes two steps."""
    return Settings("a red circle", width=48, height=48, steps=2, guidance=4.0, seed=4)
