"""`make demo` and the others: what is asked of pip, and in which order, on which machine."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

TOOL = Path(__file__).resolve().parent.parent / "tools" / "bootstrap.py"


@pytest.fixture
def bootstrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the tool as a module, its environments in a folder of the test's own."""
    spec = importlib.util.spec_from_file_location("bootstrap", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bootstrap", module)  # where dataclasses look for it
    spec.loader.exec_module(module)
    for name in ("MAIN", "WEBUI"):
        env = dataclasses.replace(getattr(module, name), folder=tmp_path / getattr(module, name).name)
        monkeypatch.setattr(module, name, env)
        env.python.parent.mkdir(parents=True)
    monkeypatch.setenv("PIP_NO_COMPILE", "1")  # the tool sets it; afterwards it is as it was
    monkeypatch.setattr(module.install, "__defaults__", (module.MAIN,))
    return module


@pytest.fixture
def asked(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Return a function that sets which commands fail and returns the list to which all are added, none being run."""

    def script(*failing: str) -> list[str]:
        commands: list[str] = []

        def record(*command: object, **options: object) -> int:
            words = " ".join(str(word) for word in command[1:])
            commands.append(words)
            return int(any(word in words for word in failing))

        monkeypatch.setattr(bootstrap, "try_run", record)
        return commands

    return script


@pytest.mark.parametrize(
    ("failing", "last"),
    [
        ((), "-m pip install torch==2.13.0+cpu"),
        (("+cpu",), "--torch-backend=cpu torch==2.13.0"),
        (("+cpu", "torch==2.13.0"), "--torch-backend=cpu torch>=2.1"),
        (("+cpu", "torch-backend"), "-m pip install torch>=2.1"),
        (("+cpu", "install uv"), "-m pip install torch>=2.1"),
    ],
)
def test_on_linux_without_a_gpu_the_large_build_of_torch_is_the_last_resort(
    bootstrap: ModuleType,
    asked: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
    failing: tuple[str, ...],
    last: str,
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(bootstrap, "has_gpu", lambda: False)
    commands = asked(*failing)
    bootstrap.install_torch(bootstrap.MAIN)
    assert commands[0] == "-m pip install torch==2.13.0+cpu"
    assert commands[-1].endswith(last)


@pytest.mark.parametrize(("platform", "gpu"), [("linux", True), ("darwin", False), ("win32", False)])
def test_elsewhere_pip_takes_the_build_for_the_machine(
    bootstrap: ModuleType, asked: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, platform: str, gpu: bool
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(bootstrap, "has_gpu", lambda: gpu)
    commands = asked()
    bootstrap.install_torch(bootstrap.MAIN)
    assert commands == ["-m pip install torch>=2.1"]


@pytest.mark.parametrize(
    ("torch", "failing", "kept"), [("2.1.0", (), True), ("2.0.1", (), False), ("", (), False), ("2.5", ("-c",), False)]
)
def test_a_torch_that_is_new_enough_and_works_is_kept(
    bootstrap: ModuleType,
    asked: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
    torch: str,
    failing: tuple[str, ...],
    kept: bool,
) -> None:
    monkeypatch.setattr(bootstrap, "probe", lambda env: {"python": "3.11.7", "pip": "24.0", "torch": torch})
    asked(*failing)
    assert bootstrap.working_torch(bootstrap.MAIN) is kept


def test_a_second_run_asks_for_nothing_until_the_project_changes(
    bootstrap: ModuleType, asked: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "probe", lambda env: {"python": "3.11.7", "pip": "24.0", "torch": "2.13.0+cpu"})
    bootstrap.MAIN.python.touch()
    commands = asked()
    bootstrap.install("test")
    assert any(word.startswith("-m pip install --editable .[test,demo]") for word in commands)
    assert bootstrap.MAIN.constraints.read_text() == "torch==2.13.0+cpu\n"

    commands = asked()
    bootstrap.install("test")
    bootstrap.install("demo")  # the tests need all that the demo needs
    assert commands == []

    monkeypatch.setattr(bootstrap, "stamp_key", lambda: "of another pyproject.toml")
    bootstrap.install("demo")
    assert commands


def test_a_venv_that_does_not_start_is_made_anew(
    bootstrap: ModuleType, asked: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    bootstrap.MAIN.python.write_text("not a program")
    asked()
    assert not bootstrap.working_venv(bootstrap.MAIN)
    assert ".venv does not start" in capsys.readouterr().out


WEBUI_PYTHON = pytest.mark.skipif(
    sys.version_info[:2] not in ((3, 10), (3, 11)), reason="the WebUI's versions are for Python 3.10 and 3.11"
)


@WEBUI_PYTHON
def test_the_extension_is_tested_last_and_with_the_webui_s_own_versions(
    bootstrap: ModuleType, asked: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "probe", lambda env: {"python": "3.11.7", "pip": "24.0", "torch": "2.13.0+cpu"})
    commands = asked()
    bootstrap.test([])
    assert any(word.startswith("-m pip install --editable .[webui] ") for word in commands)
    assert commands[-1] == "-m pytest tests/extension"
    pins = bootstrap.WEBUI.constraints.read_text().split()
    assert pins[0] == "torch==2.13.0+cpu"
    assert {"gradio==3.41.2", "fastapi==0.94.0", "lark==1.1.2", "numpy==1.26.2"} < set(pins)
    assert bootstrap.MAIN.constraints.read_text() == "torch==2.13.0+cpu\n"


def test_arguments_are_for_the_tests_in_the_first_environment(
    bootstrap: ModuleType, asked: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "probe", lambda env: {"python": "3.11.7", "pip": "24.0", "torch": "2.13.0+cpu"})
    commands = asked()
    bootstrap.test(["-k", "parse"])
    assert commands[-1].endswith("-k parse")
    assert not any("webui" in command for command in commands)


def test_where_the_webui_s_versions_cannot_be_had_one_line_says_so(
    bootstrap: ModuleType,
    asked: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 13, 0))
    commands = asked()
    bootstrap.test_extension()
    assert commands == []
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith("== Left out: the extension")


def test_versions_compare_as_numbers(bootstrap: ModuleType) -> None:
    assert bootstrap.version("2.13.0+cpu") == (2, 13, 0) > bootstrap.version("2.1") > bootstrap.version("")
