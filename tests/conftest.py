"""What holds for every test: no network, no files outside of the test's own folders, the same examples in every CI run.

The environment is set before anything imports a library that reads it once, at its own import.
"""

from __future__ import annotations

import gc
import os
from collections import Counter
from collections.abc import Iterator
from itertools import count
from pathlib import Path

# A test that asks the network for a model must fail at once, not wait for it.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ.pop("LORA_RUNTIME_PATH", None)

import hypothesis
import pytest
from cases import repeated

# The first example often pays for an import or a grammar, so no deadline. In CI the same examples each time: a failure
# there is the change's own. A person's run looks further each time.
hypothesis.settings.register_profile("person", deadline=None, max_examples=50)
hypothesis.settings.register_profile("ci", deadline=None, max_examples=100, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "person")


@pytest.fixture(scope="session", autouse=True)
def _own_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the user's cache folder out of sight, and run torch on two threads: models this small gain from no more.

    Where several processes share the cores, on one.
    """
    import torch

    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORA_RUNTIME_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def _caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give a folder that is not there yet, another one each time. `mktemp` looks at all that there are, thousands."""
    folder = tmp_path_factory.mktemp("caches")
    return (folder / str(number) for number in count())


@pytest.fixture(autouse=True)
def _own_cache(_caches: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test a cache folder of its own, so that none finds what another has written."""
    monkeypatch.setenv("LORA_RUNTIME_CACHE", str(next(_caches)))


@pytest.hookimpl(tryfirst=True)  # before the slow ones are left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow the cases of a test that come after its quick ones."""
    marked = [(item, quick.args) for item in items if (quick := item.get_closest_marker("quick")) is not None]
    slow = list(repeated(item for item, most in marked if not most))
    cases: Counter[str] = Counter()
    for item, most in marked:
        name = item.nodeid.partition("[")[0]
        cases[name] += 1
        if most and cases[name] > most[0]:
            slow.append(item)
    for item in slow:
        item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """Spare the collector what stays to the end: modules, and thousands of tests."""
    gc.collect()
    gc.freeze()
