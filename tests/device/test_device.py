"""Runs the tests on the pretend accelerator, in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from device import pretend

FOLDER = Path(__file__).resolve().parent


def test_all_holds_on_a_device_whose_memory_the_host_cannot_touch(request: pytest.FixtureRequest) -> None:
    reason = pretend.why_not()
    if reason is not None:
        pytest.skip(reason)
    environment = {**os.environ, "LORA_RUNTIME_DEVICE_SUITE": "1"}
    command = [sys.executable, "-m", "pytest", str(FOLDER / "suite"), "-p", "no:cacheprovider"]
    command += ["-m", request.config.getoption("-m")]  # the slow ones as here
    done = subprocess.run(command, cwd=FOLDER.parent.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-2000:]
