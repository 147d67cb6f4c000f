"""`make demo` and the others: what is asked of pip, and in which order, on which machine."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TOOL = Path(__file__).resolve().parent.parent / "tools" / "bootstrap.py"


@pytest.fixture
def bootstrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the tool as a module, its environments in a folder of the test's own."""
    spec = importlib.util.spec_from_file_location("bootstrap", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bootstrap", module)  # where dataclasses look for it
    spec.loader.exec_module(module)
    for name in ("MAIN", "NEWEST", "WEBUI", "OLDEST", "DOCS", "WHEEL"):
        env = dataclasses.replace(getattr(module, name), folder=tmp_path / getattr(module, name).name)
        monkeypatch.setattr(module, name, env)
        env.python.parent.mkdir(parents=True)
    monkeypatch.setenv("PIP_NO_COMPILE", "1")  # the tool sets it; afterwards it is as it was
    monkeypatch.setattr(module.install, "__defaults__", (module.MAIN, sys.executable))
    lacking = [("lark", "1.3.1", "")]
    monkeypatch.setattr(module, "differences", lambda env, locks: lacking)
    monkeypatch.setattr(module, "pip_settings", lambda env: "")
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
        monkeypatch.setattr(bootstrap, "probe", lambda env: {"python": "3.11.7", "pip": "24.0", "torch": "2.13.0+cpu"})
        return commands

    return script


@pytest.mark.parametrize(
    ("failing", "last"),
    [
        ((), "-m pip install torch==2.13.0+cpu --constraint=locks/bench.txt"),
        (("+cpu",), "--torch-backend=cpu torch==2.13.0 --constraint=locks/bench.txt"),
        (("+cpu", "torch==2.13.0"), "--torch-backend=cpu torch>=2.1"),
        (("+cpu", "torch-backend"), "torch==2.13.0 --constraint=locks/bench.txt"),
        (("+cpu", "-m uv"), "-m pip install torch==2.13.0 --constraint=locks/bench.txt"),
        (("+cpu", "install uv"), "-m pip install torch==2.13.0 --constraint=locks/bench.txt"),
        (("+cpu", "install uv", "torch==2.13.0"), "-m pip install torch>=2.1"),
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
    assert commands[0].startswith("-m pip install torch==2.13.0+cpu ")
    assert commands[-1].endswith(last)


@pytest.mark.parametrize(("platform", "gpu"), [("linux", True), ("darwin", False), ("win32", False)])
def test_elsewhere_pip_takes_the_build_for_the_machine(
    bootstrap: ModuleType, asked: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, platform: str, gpu: bool
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(bootstrap, "has_gpu", lambda: gpu)
    exact = "-m pip install torch==2.13.0 --constraint=locks/bench.txt"
    commands = asked()
    bootstrap.install_torch(bootstrap.MAIN)
    assert commands == [exact]

    commands = asked("torch==2.13.0")  # not built for this machine
    bootstrap.install_torch(bootstrap.MAIN)
    assert commands == [exact, "-m pip install torch>=2.1"]


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
    asked(*failing)
    monkeypatch.setattr(bootstrap, "probe", lambda env: {"python": "3.11.7", "pip": "24.0", "torch": torch})
    assert bootstrap.working_torch(bootstrap.MAIN) is kept


def test_a_second_run_asks_for_nothing_until_the_project_changes(
    bootstrap: ModuleType, asked: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    bootstrap.MAIN.python.touch()
    commands = asked()
    bootstrap.install("test")
    assert any(command.endswith("--no-build-isolation --editable .") for command in commands)
    assert bootstrap.MAIN.requirements.read_text() == "lark==1.3.1\n"
    assert bootstrap.MAIN.constraints.read_text() == "torch==2.13.0+cpu\n"

    commands = asked()
    bootstrap.install("test")
    bootstrap.install("demo")  # the tests need all that the demo needs
    assert commands == []

    monkeypatch.setattr(bootstrap, "stamp_key", lambda env: "of another pyproject.toml")
    bootstrap.install("demo")
    assert commands


def test_where_all_is_there_already_nothing_is_asked_of_the_network(
    bootstrap: ModuleType, asked: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "differences", lambda env, locks: [])
    commands = asked()
    bootstrap.install("test")
    [install] = [command for command in commands if "pip install" in command]
    assert install == "-m pip install --quiet --no-deps --no-build-isolation --editable ."


@pytest.mark.parametrize(
    ("index", "failing", "asked_of"),
    [
        (False, (), ["-m pip install --no-deps uv==0.13.9", "-m uv pip install"]),
        (False, ("pip install --no-deps uv",), ["-m pip install --no-deps uv==0.13.9", "-m pip install"]),
        (False, ("-m uv",), ["-m pip install --no-deps uv==0.13.9", "-m uv pip install", "-m pip install"]),
        (True, (), ["-m pip install"]),
    ],
)
def test_uv_installs_what_pip_can_be_gone_round_for(
    bootstrap: ModuleType,
    asked: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
    index: bool,
    failing: tuple[str, ...],
    asked_of: list[str],
) -> None:
    monkeypatch.setattr(bootstrap, "has_own_index", lambda env: index)
    commands = asked(*failing)
    lines = ["lark==1.3.1", "uv==0.13.9"]
    bootstrap.install_versions(bootstrap.MAIN, lines)
    assert len(commands) == len(asked_of)
    assert all(command.startswith(words) for command, words in zip(commands, asked_of, strict=True))
    assert str(bootstrap.MAIN.requirements) in commands[-1]
    assert not any("--compile-bytecode" in command for command in commands)
    monkeypatch.delenv("PIP_NO_COMPILE")
    bootstrap.install_versions(bootstrap.MAIN, lines)
    assert [("--compile-bytecode" in each) for each in commands[len(asked_of) :]] == ["-m uv" in w for w in asked_of]
    assert bootstrap.MAIN.requirements.read_text() == "".join(f"{line}\n" for line in lines)


@pytest.mark.parametrize(
    ("settings", "own"),
    [
        ("", False),
        ("global.extra-index-url='https://example.org/more'\nglobal.timeout='9'\n", False),
        ("global.index-url='https://example.org/simple'\n", True),
        (":env:.index-url='https://example.org/simple'\n", True),
        ("install.no-index='1'\n", True),
    ],
)
def test_an_index_of_one_s_own_is_found_in_pip_s_settings(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, settings: str, own: bool
) -> None:
    monkeypatch.setattr(bootstrap, "pip_settings", lambda env: settings)
    assert bootstrap.has_own_index(bootstrap.MAIN) is own


def test_an_install_is_repeated_when_its_own_lock_changes(
    bootstrap: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "locks").mkdir()
    (tmp_path / "pyproject.toml").write_text("")
    for name in bootstrap.LOCKS:
        (tmp_path / "locks" / f"{name}.txt").write_text("")
    monkeypatch.setattr(bootstrap, "ROOT", tmp_path)
    main, webui = bootstrap.stamp_key(bootstrap.MAIN), bootstrap.stamp_key(bootstrap.WEBUI)
    (tmp_path / "locks" / "test.txt").write_text("lark==1.3.1\n")
    assert bootstrap.stamp_key(bootstrap.MAIN) != main
    assert bootstrap.stamp_key(bootstrap.WEBUI) == webui


def test_a_venv_that_does_not_start_is_made_anew(bootstrap: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    bootstrap.MAIN.python.write_text("not a program")
    assert not bootstrap.working_venv(bootstrap.MAIN)
    assert ".venv does not start" in capsys.readouterr().out


WEBUI_PYTHON = pytest.mark.skipif(
    sys.version_info[:2] not in ((3, 10), (3, 11)), reason="the WebUI's versions are for Python 3.10 and 3.11"
)


def test_the_extension_is_tested_on_the_webui_s_own_stack_and_then_the_library(
    bootstrap: ModuleType, asked: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "find_python", lambda wanted: "python3.10")
    commands = asked()
    there = {"python": "3.10.13", "pip": "24.0", "torch": "2.1.2+cpu"}
    monkeypatch.setattr(
        bootstrap, "probe", lambda env: there if env == bootstrap.OLDEST else there | {"torch": "2.13.0"}
    )
    bootstrap.test([])
    plain = "-m pytest -n auto --maxprocesses=4 --dist=worksteal"
    gate = "--cov --cov-config=tests/extension/coverage.ini --cov-fail-under=95"
    assert [command for command in commands if "-m pytest" in command] == [
        f"{plain} --cov --cov-branch --cov-fail-under=95 -m not slow",
        f"{plain} -p oldest tests/extension {gate} -m not slow",
        f"{plain} -p oldest --ignore=tests/extension -m not slow",
    ]


@WEBUI_PYTHON
def test_without_the_webui_s_python_its_libraries_will_do(
    bootstrap: ModuleType, asked: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "find_python", lambda wanted: None)
    commands = asked()
    bootstrap.test([])
    assert commands[-1].startswith("-m pytest -n auto --maxprocesses=4 --dist=worksteal tests/extension ")
    assert commands[-1].endswith(" --cov --cov-config=tests/extension/coverage.ini --cov-fail-under=95 -m not slow")
    assert bootstrap.WEBUI.constraints.read_text() == "torch==2.13.0+cpu\n"
    pins = {"gradio==3.41.2", "fastapi==0.94.0", "lark==1.1.2", "numpy==1.26.2", "transformers==4.30.2"}
    assert pins < set(bootstrap.lock_lines("webui"))


@WEBUI_PYTHON
def test_only_test_all_runs_the_slow_ones(
    bootstrap: ModuleType, asked: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "find_python", lambda wanted: None)
    monkeypatch.delenv("CI", raising=False)
    commands = asked()
    for command, left_out in ((bootstrap.test, True), (bootstrap.test_all, False)):
        commands.clear()
        command([])
        tests = [each for each in commands if "-m pytest" in each]
        assert len(tests) >= 2
        assert all(each.endswith("-m not slow") == left_out for each in tests)


def test_arguments_are_for_the_tests_in_the_first_environment(
    bootstrap: ModuleType, asked: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = asked()
    bootstrap.test(["-k", "parse"])
    assert commands[-1].endswith("-k parse")
    assert "not slow" not in commands[-1]  # who names a test has it run
    assert not any("webui" in command for command in commands)


def test_where_the_webui_s_versions_cannot_be_had_one_line_says_so(
    bootstrap: ModuleType,
    asked: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 13, 0))
    commands = asked()
    bootstrap.test_extension([])
    assert commands == []
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith("== Left out: the extension")


def python(tmp_path: Path, name: str, prints: str) -> str:
    """Write a program that says which Python it is, or does not start, and return its path."""
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{prints}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.skipif(sys.platform == "win32", reason="the programs are shell scripts")
def test_a_python_is_found_that_starts_and_is_of_the_version(
    bootstrap: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", python(tmp_path, "this", "echo 3 13"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    monkeypatch.delenv("PYTHON310", raising=False)
    python(tmp_path, "bin/python3.10", "exit 127")
    assert bootstrap.find_python((3, 10)) is None

    managed = python(tmp_path, "pyenv/versions/3.10.13/bin/python3.10", "echo 3 10")
    assert bootstrap.find_python((3, 10)) == managed
    monkeypatch.setenv("PYTHON310", python(tmp_path, "named", "echo 3 10"))
    assert bootstrap.find_python((3, 10)) == str(tmp_path / "named")
    monkeypatch.setenv("PYTHON310", python(tmp_path, "named", "echo 3 9"))
    assert bootstrap.find_python((3, 10)) == managed


def test_the_oldest_stack_has_its_own_torch_and_tests(
    bootstrap: ModuleType, asked: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(bootstrap, "has_gpu", lambda: False)
    monkeypatch.setattr(bootstrap, "find_python", lambda wanted: "python3.10")
    monkeypatch.setenv("PYTHONPATH", "")
    commands = asked("+cpu", "-m uv")
    there = {"python": "3.10.13", "pip": "24.0", "torch": "2.13.0"}
    monkeypatch.setattr(bootstrap, "probe", lambda env: there)
    bootstrap.test_oldest(["-k", "parse"])
    lock = "--constraint=locks/oldest.txt"
    assert [command for command in commands if "torch==" in command and "uv" not in command] == [
        f"-m pip install torch==2.1.2+cpu {lock}",
        f"-m pip install torch==2.1.2 {lock}",
    ]
    assert not any("torch>=" in command for command in commands)
    assert commands[-1] == "-m pytest -n auto --maxprocesses=4 --dist=worksteal -p oldest -k parse"


def test_without_its_python_the_oldest_stack_is_left_out_but_not_in_ci(
    bootstrap: ModuleType,
    asked: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(bootstrap, "find_python", lambda wanted: None)
    commands = asked()
    monkeypatch.delenv("CI", raising=False)
    bootstrap.test_oldest([])
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith("== Left out: the tests on the oldest stack need a Python 3.10")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(bootstrap.Failed, match=r"Python 3\.10"):
        bootstrap.test_oldest([])
    assert commands == []


def test_the_site_is_built_strictly_and_needs_no_torch(
    bootstrap: ModuleType, asked: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "find_python", lambda wanted: "python3.12" if wanted == (3, 12) else None)
    commands = asked()
    bootstrap.docs([])
    assert commands[-1] == "-m zensical build --strict --clean"
    assert not any("torch" in command or "--editable" in command for command in commands)
    assert bootstrap.DOCS.constraints.read_text() == ""

    monkeypatch.setattr(bootstrap, "find_python", lambda wanted: None)
    with pytest.raises(bootstrap.Failed, match=r"Python 3\.11 or newer"):
        bootstrap.docs([])


def test_a_release_is_checked_before_the_wheel_is_built_and_finished_after_it(
    bootstrap: ModuleType, asked: Callable[..., list[str]]
) -> None:
    commands = asked()
    bootstrap.release(["--tag"])
    steps = [command for command in commands if command.startswith("tools/")]
    wheel = f"tools/wheel.py --borrow {bootstrap.MAIN.python}"
    assert steps == ["tools/release.py check", wheel, "tools/release.py finish --tag"]

    commands = asked("tools/wheel.py")
    with pytest.raises(bootstrap.Failed):
        bootstrap.release(["--tag"])
    assert not any("finish" in command for command in commands)


def test_a_folder_that_cannot_be_written_to_is_what_the_advice_is_about(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap.os, "access", lambda path, mode: False)
    assert bootstrap.venv_advice(bootstrap.MAIN).startswith("This folder cannot be written to")
    monkeypatch.setattr(bootstrap.os, "access", lambda path, mode: True)
    assert bootstrap.venv_advice(bootstrap.MAIN) == ""
    monkeypatch.setattr(bootstrap.importlib.util, "find_spec", lambda name: None)
    assert "apt install python3-venv" in bootstrap.venv_advice(bootstrap.MAIN)


def test_commands_are_shown_as_one_would_type_them_in_the_project_s_folder(bootstrap: ModuleType) -> None:
    words = [bootstrap.MAIN.python, "-m", "pip", bootstrap.ROOT / "locks" / "test.txt"]
    assert [bootstrap.shown(word) for word in words] == ["python", "-m", "pip", str(Path("locks", "test.txt"))]


def test_the_newest_versions_are_compared_with_the_lock_and_what_broke_is_named(
    bootstrap: ModuleType,
    asked: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(bootstrap, "differences", lambda env, locks: [("lark", "1.3.1", "2.0"), ("hatchling", "1", "")])
    commands = asked("mypy")
    (bootstrap.NEWEST.folder / "results.xml").write_text("of the run before")
    with pytest.raises(bootstrap.Failed):
        bootstrap.test_newest([])
    assert any("--upgrade-strategy=eager --editable .[test]" in command for command in commands)
    lines = capsys.readouterr().out.splitlines()
    assert "==     lark 2.0 (locked: 1.3.1)" in lines
    assert not any("hatchling" in line for line in lines)
    assert lines[-1] == "== Broken: types"


def test_failed_tests_are_read_from_pytest_s_own_file(bootstrap: ModuleType, tmp_path: Path) -> None:
    results = tmp_path / "results.xml"
    results.write_text(
        "<testsuites><testsuite>"
        '<testcase classname="tests.test_a" name="test_one[x]"><failure/></testcase>'
        '<testcase classname="tests.test_a" name="test_two"><skipped/></testcase>'
        '<testcase classname="tests.test_b" name="test_three"><error/></testcase>'
        "</testsuite></testsuites>"
    )
    assert bootstrap.failed_tests(results) == ["tests/test_a.py::test_one[x]", "tests/test_b.py::test_three"]


LOCKS = TOOL.parent.parent / "locks"
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def locked(name: str, python: str) -> dict[str, str]:
    """Return package → version in a lock, for a Python on Linux."""
    here = {"python_version": python, "python_full_version": f"{python}.7", "sys_platform": "linux"}
    lines = (LOCKS / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    wanted = [Requirement(line) for line in lines if not line.startswith("#")]
    return {r.name: str(r.specifier)[2:] for r in wanted if r.marker is None or r.marker.evaluate(here)}


@pytest.mark.parametrize("name", sorted(path.stem for path in LOCKS.glob("*.txt")))
def test_a_lock_has_exact_versions_and_no_torch(name: str) -> None:
    for line in (LOCKS / f"{name}.txt").read_text(encoding="utf-8").splitlines()[1:]:
        assert re.fullmatch(r"[a-z\d-]+==[\w.]+( ; .*)?", line)
        assert not re.match(r"torch==|torchvision|triton|nvidia|cuda", line)


@pytest.mark.parametrize("python", PYTHONS)
def test_the_locks_are_within_the_project_s_ranges_and_of_one_mind(python: str) -> None:
    project = tomllib.loads((TOOL.parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    for name in ("demo", "train", "test", "bench"):
        versions = locked(name, python)
        for text in [*project["dependencies"], *extras[name], *extras["demo"]]:
            wanted = Requirement(text)
            if wanted.name in ("torch", "lora-runtime") or (
                wanted.marker and not wanted.marker.evaluate({"python_version": python})
            ):
                continue
            assert wanted.specifier.contains(versions[wanted.name.lower()]), text
        assert locked("demo", python).items() <= versions.items()
    both = locked("test", python).keys() & locked("bench", python).keys()
    assert all(locked("test", python)[name] == locked("bench", python)[name] for name in both)


def test_the_oldest_stack_is_what_the_webui_installs() -> None:
    versions = locked("oldest", "3.10")
    assert (versions["numpy"], versions["transformers"], versions["gradio"]) == ("1.26.2", "4.30.2", "3.41.2")
    assert (versions["lark"], versions["safetensors"]) == ("1.1.2", "0.4.2")


def test_versions_compare_as_numbers(bootstrap: ModuleType) -> None:
    assert bootstrap.version("2.13.0+cpu") == (2, 13, 0) > bootstrap.version("2.1") > bootstrap.version("")
