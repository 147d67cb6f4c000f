"""The extension's tests within the double of SD.Next, whose pipelines are those of diffusers."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from extension.sdnext.program import SDNext

LACKING = [name for name in ("diffusers", "transformers", "accelerate") if importlib.util.find_spec(name) is None]

if not LACKING:
    with warnings.catch_warnings():  # they warn of each other's age while they are compiled
        warnings.simplefilter("ignore")
        for name in ("diffusers.pipelines.stable_diffusion", "transformers.models.clip.modeling_clip", "accelerate"):
            importlib.import_module(name)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs diffusers where it is not installed."""
    for item in items:
        if item.path.parent == Path(__file__).parent and LACKING:
            item.add_marker(pytest.mark.skip(reason=f"{' and '.join(LACKING)} not installed"))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Paint on one thread: layers of a few numbers only wait for a second one, on a busy machine for seconds."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def start_sdnext(tmp_path: Path, _quick: None) -> Iterator[Callable[..., SDNext]]:
    """Return a function that starts the double, once in a test."""
    from sdnext.program import SDNext, sdnext_process

    with ExitStack() as stack:

        def begin(*, prepare: Callable[[], None] = lambda: None, **given: Any) -> SDNext:
            stack.enter_context(sdnext_process())
            prepare()
            return SDNext(tmp_path, **given)

        yield begin


@pytest.fixture
def sdnext(start_sdnext: Callable[..., SDNext]) -> SDNext:
    """Return the double with the extension, and two LoRAs for its checkpoint: ink changes the text encoder too."""
    import tiny

    started = start_sdnext()
    pipe = tiny.pipeline()
    tiny.write_kohya_lora(started.loras / "ink.safetensors", pipe)
    tiny.write_kohya_lora(started.loras / "wash.safetensors", pipe, seed=1)
    return started
