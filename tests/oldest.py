"""A plugin for pytest, for the oldest stack only: skips what cannot be judged there, and nothing else.

There are neither diffusers nor PEFT nor LyCORIS for it, transformers has few language models, and torch has no
arithmetic in half precision on a CPU. What fails within the library's own code, its demo aside, is never skipped.

Of a test with several parameters, the cases in which no value is new count as slow: what a stack lacks, it lacks for a
value, and the newer one runs them all.
"""

from __future__ import annotations

import importlib.util
import re
import traceback
from collections.abc import Generator
from pathlib import Path

import pytest
from cases import repeated

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
LACKING = [name for name in ("diffusers", "peft", "lycoris", "accelerate") if importlib.util.find_spec(name) is None]
# These need the judges in another process, a whole WebUI, or a newer gradio.
LEFT_OUT = (
    TESTS / "test_benchmarks.py",
    TESTS / "webui",
    TESTS / "studio",
    TESTS / "cli" / "test_plan.py",
    TESTS / "test_memory_page.py",
)
# What comes to the same on any stack, and takes minutes: who imports whom.
ALIKE = (TESTS / "test_architecture.py",)


def reason(error: BaseException) -> str:
    """Return what the stack lacks, "" if the failure has another cause."""
    files = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    own = [path for path in files if ROOT in path.parents and "site-packages" not in path.parts]
    if not own or not any(folder in own[-1].parents for folder in (TESTS, ROOT / "lora_runtime" / "demo")):
        return ""
    if isinstance(error, ModuleNotFoundError) and error.name and error.name.split(".")[0] in LACKING:
        return f"{error.name} is not on this stack"
    if isinstance(error, AttributeError) and re.match(r"module transformers has no attribute", str(error)):
        return "transformers has no such model on this stack"
    if isinstance(error, RuntimeError) and "not implemented for 'Half'" in str(error):
        return "the test's own model cannot run in half precision on this stack"
    return ""


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out what cannot run."""
    return True if collection_path in (*LEFT_OUT, *ALIKE) else None


@pytest.hookimpl(tryfirst=True)  # before the slow ones are left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow the cases of a test all of whose values are in earlier ones.

    The extension's tests come last: they keep the collector from what was there before them until the end.
    """
    items.sort(key=lambda item: TESTS / "extension" in item.path.parents)
    for item in list(repeated(items)):
        item.add_marker(pytest.mark.slow)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Skip a module that imports a judge."""
    report = yield
    call = getattr(report, "call", None)
    if report.failed and call is not None:
        error = call.excinfo.value
        if why := reason(error.__cause__ or error):
            report.outcome = "skipped"
            report.longrepr = (str(collector.path), 0, f"Skipped: {why}")
            del report.__dict__["call"]
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, None, None]:
    """Skip a test whose fixtures need what is not there."""
    yield from _skipping()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Skip a test that needs what is not there."""
    yield from _skipping()


def _skipping() -> Generator[None, None, None]:
    try:
        yield
    except (ModuleNotFoundError, AttributeError, RuntimeError) as error:
        if why := reason(error):
            pytest.skip(why)
        raise
