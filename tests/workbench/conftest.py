"""Running the command in this process, as a person would from a shell."""

from __future__ import annotations

import pytest
from commands import Command, Result

from lora_runtime.cli import main


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """`command("list", folder)` runs `lora-runtime list folder`."""

    def run(*arguments: object) -> Result:
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as exit:  # argparse's own way to end
            status = exit.code if isinstance(exit.code, int) else 1
        return Result(status, *capsys.readouterr())

    return run
