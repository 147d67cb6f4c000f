"""Folders of small pictures, as people who train have them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Run torch on one thread: models this small wait for a second one rather than gain from it."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _draw(
    path: Path, size: tuple[int, int] = (64, 48), color: Any = (200, 30, 30), mode: str = "RGB", **save: Any
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path, **save)
    return path


@pytest.fixture
def draw() -> Callable[..., Path]:
    """Give the function that writes a picture of one colour, its folder included."""
    return _draw
