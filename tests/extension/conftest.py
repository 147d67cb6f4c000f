"""The extension's tests; those in test_host_*.py run it inside the double of the WebUI (tests/double/)."""

from __future__ import annotations

import gc
import importlib
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from double.lacking import LACKING
from double.loras import File, plain, write

if TYPE_CHECKING:
    from double.webui import WebUI

# gradio, imported and used as the WebUI (3.41) and Forge Neo (4.40) do it, warns about itself and what it is built on.
_OLD = (
    "ignore::DeprecationWarning:gradio",
    "ignore::UserWarning:gradio",
    r"ignore:\s*on_event is deprecated:DeprecationWarning",
)
if not LACKING:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("gradio", "fastapi.testclient", "lark"):
            importlib.import_module(name)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs the WebUI's packages where these are not installed; bear with their age where they are."""
    for item in items:
        if item.path.parent != Path(__file__).parent or not item.path.name.startswith("test_host_"):
            continue
        if LACKING:
            reason = f"{' and '.join(LACKING)} not installed: `make test` runs this with the WebUI's own versions"
            item.add_marker(pytest.mark.skip(reason=reason))
        for warning in _OLD:
            item.add_marker(pytest.mark.filterwarnings(warning))


@pytest.fixture(scope="session")
def _quick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep compiled modules, which every start of the double imports anew, and spare the collector what stays."""
    gc.collect()
    gc.freeze()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "dont_write_bytecode", False)
        patch.setattr(sys, "pycache_prefix", str(tmp_path_factory.mktemp("bytecode")))
        yield
    gc.unfreeze()


@pytest.fixture
def start(tmp_path: Path, _quick: None) -> Iterator[Callable[..., WebUI]]:
    """Return a function that starts the double, once in a test, with what `WebUI` takes and `arguments`.

    `prepare` is called before, in the process that the double starts in.
    """
    from contextlib import ExitStack

    from double.webui import WebUI, process

    with ExitStack() as stack:

        def begin(
            *, arguments: tuple[str, ...] = (), prepare: Callable[[], None] = lambda: None, **given: Any
        ) -> WebUI:
            stack.enter_context(process(arguments))
            prepare()
            return WebUI(tmp_path, **given)

        yield begin


@pytest.fixture
def webui(start: Callable[..., WebUI]) -> WebUI:
    """Return the double as most users have it: the built-in extension is there too, and loads first."""
    return start()


@pytest.fixture
def ink(webui: WebUI) -> File:
    """Return a LoRA for the checkpoint that is loaded, among the user's files."""
    return write(webui.loras / "ink.safetensors", plain())
