"""The nodes' tests within the double of ComfyUI."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from double.loras import File, write

if TYPE_CHECKING:
    from comfyui.program import Comfy


@pytest.fixture
def start_comfy(tmp_path: Path) -> Iterator[Callable[..., Comfy]]:
    """Return a function that starts the double, once in a test."""
    from comfyui.program import Comfy, comfy_process

    with ExitStack() as stack:

        def begin(**given: Any) -> Comfy:
            stack.enter_context(comfy_process())
            return Comfy(tmp_path, **given)

        yield begin


@pytest.fixture
def comfy(start_comfy: Callable[..., Comfy]) -> Comfy:
    """Return the double with the nodes in it."""
    return start_comfy()


@pytest.fixture
def ink(comfy: Comfy) -> File:
    """Return a LoRA for the checkpoint, among the user's files."""
    return write(comfy.loras / "ink.safetensors", comfy.plain())


@pytest.fixture
def wash(comfy: Comfy) -> File:
    """Return another one, in a folder."""
    return write(comfy.loras / "style" / "wash.safetensors", comfy.plain(), seed=1)
