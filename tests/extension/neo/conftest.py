"""The extension's tests within the double of Forge Neo."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from double.lacking import LACKING
from double.loras import File, plain, write

if TYPE_CHECKING:
    from extension.neo.program import Neo

_OLD = ("ignore::DeprecationWarning:gradio", "ignore::UserWarning:gradio")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs the program's packages where these are not installed; bear with their age where they are."""
    for item in items:
        if item.path.parent != Path(__file__).parent:
            continue
        if LACKING:
            reason = f"{' and '.join(LACKING)} not installed: `make test` runs this with the WebUI's own versions"
            item.add_marker(pytest.mark.skip(reason=reason))
        for warning in _OLD:
            item.add_marker(pytest.mark.filterwarnings(warning))


@pytest.fixture
def start_neo(tmp_path: Path, _quick: None) -> Iterator[Callable[..., Neo]]:
    """Return a function that starts the double, once in a test."""
    from neo.program import Neo, neo_process

    with ExitStack() as stack:

        def begin(*, arguments: tuple[str, ...] = (), prepare: Callable[[], None] = lambda: None, **given: Any) -> Neo:
            stack.enter_context(neo_process(arguments))
            prepare()
            return Neo(tmp_path, **given)

        yield begin


@pytest.fixture
def neo(start_neo: Callable[..., Neo]) -> Neo:
    """Return the double as most users have it: the built-in extension is there too, and loads first."""
    return start_neo()


@pytest.fixture
def ink(neo: Neo) -> File:
    """Return a LoRA for the checkpoint, among the user's files."""
    return write(neo.loras / "ink.safetensors", plain())


@pytest.fixture
def wash(neo: Neo) -> File:
    """Return another one."""
    return write(neo.loras / "wash.safetensors", plain(), seed=1)
