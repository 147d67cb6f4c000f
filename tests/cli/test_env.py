"""What a report of a fault says of the machine."""

from __future__ import annotations

import json
import platform
from importlib import metadata
from pathlib import Path

import pytest

import lora_runtime
from lora_runtime import cli


def test_versions_are_those_that_are_installed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["env", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["lora_runtime"] == lora_runtime.__version__
    assert found["python"] == platform.python_version()
    assert found["torch"] == metadata.version("torch")
    assert found["device"]


def test_a_table_hides_the_user_s_name(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORA_RUNTIME_PATH", str(Path.home() / "loras"))
    assert cli.main(["env"]) == 0
    out = capsys.readouterr().out
    assert str(Path("~") / "loras") in out
    assert metadata.version("safetensors") in out
