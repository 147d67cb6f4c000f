"""Running the command in this process, as a person would from a shell; and torch on one thread."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from commands import Command, Result

from lora_runtime.cli import main


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """On models this small a second thread only waits for the first, and long where others have the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """`command("sweep", …)` runs `lora-runtime sweep …`."""

    def run(*arguments: object) -> Result:
        status = main([str(argument) for argument in arguments])
        return Result(status, *capsys.readouterr())

    return run
