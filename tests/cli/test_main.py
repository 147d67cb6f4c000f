"""What all subcommands have in common: exit status, one line for an error, pipes, and what is not imported."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Command

import lora_runtime
from lora_runtime import cli
from lora_runtime.cli import console
from lora_runtime.cli.console import CommandError, human_size, needs_extra, one_line, printable, span_of, table


def run_module(*arguments: str, stdout: int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    """Run `python -m lora_runtime` with these arguments."""
    return subprocess.run(
        [sys.executable, "-m", "lora_runtime", *arguments], stdout=stdout, stderr=subprocess.PIPE, encoding="utf-8"
    )


def test_the_module_is_the_command() -> None:
    done = run_module("--version")
    assert (done.returncode, done.stdout.strip()) == (0, f"lora-runtime {lora_runtime.__version__}")


def test_help_lists_every_command(command: Command) -> None:
    result = command("--help")
    assert result.status == 0
    for name in ("parse", "list", "inspect", "run", "demo"):
        assert f"\n    {name} " in result.out


@pytest.mark.parametrize("arguments", [[], ["paint"], ["list", "--no-such-option"], ["inspect"]])
def test_wrong_usage_is_status_2(command: Command, arguments: list[str]) -> None:
    result = command(*arguments)
    assert result.status == 2
    assert result.err.startswith("usage: lora-runtime")
    assert result.out == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["list", "nowhere"],
        ["inspect", "nowhere/x.safetensors"],
        ["inspect", "/nowhere/x.safetensors"],
        ["parse", "--strict", "<lora:a:b>"],
        ["run", "--model", "nowhere", "--prompt", "a", "--out", "a.png"],
    ],
)
def test_what_goes_wrong_is_one_line_and_status_2(command: Command, arguments: list[str]) -> None:
    result = command(*arguments)
    assert result.status == 2
    assert result.out == ""
    assert result.err.startswith("lora-runtime: error: ")
    assert result.err.count("\n") == 1


def test_parsing_a_prompt_imports_no_torch() -> None:
    code = (
        "import sys; from lora_runtime.cli import main; main(['parse', 'a <lora:b:0.5>']);"
        "print(sorted({'torch', 'numpy', 'safetensors', 'diffusers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX pipe")
def test_a_reader_that_leaves_early_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = run_module("parse", "a <lora:b>", stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def failing_with(error: BaseException) -> Callable[..., int]:
    """Return a subcommand that raises."""

    def run(arguments: object) -> int:
        raise error

    return run


def test_ctrl_c_is_status_130_and_silent(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli.parse, "run", failing_with(KeyboardInterrupt()))
    assert command("parse", "a") == (130, "", "")


def test_an_os_error_names_its_file(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli.parse, "run", failing_with(PermissionError(13, "Permission denied", "a.png")))
    assert command("parse", "a").err == "lora-runtime: error: Permission denied: a.png\n"


def test_a_bug_is_not_hidden(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli.parse, "run", failing_with(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        command("parse", "a")


@pytest.mark.skipif(os.name == "nt", reason="Windows passes arguments as Unicode")
def test_a_console_that_cannot_show_a_character_gets_it_escaped(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lora_runtime", "parse", "水 <lora:é>"],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "1"},
    )
    assert done.returncode == 0
    assert b"\\u6c34 " in done.stdout


class TestText:
    def test_an_os_error_without_a_file_is_its_reason(self) -> None:
        assert one_line(OSError(28, "No space left")) == "No space left"
        assert one_line(OSError("no model\n here")) == "no model here"

    def test_what_a_terminal_would_obey_is_spelled_out(self) -> None:
        assert printable("a\x1b[31m\r\n水é\ud800") == "a\\x1b[31m\\r\\n水é\\ud800"

    @pytest.mark.parametrize(
        ("count", "text"),
        [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (144_200_000, "144.2 MB"), (2_000_000_000_000, "2000.0 GB")],
    )
    def test_sizes_are_decimal(self, count: int, text: str) -> None:
        assert human_size(count) == text

    @pytest.mark.parametrize(
        ("values", "text"), [((), "-"), ((8,), "8"), ((4, 16, 32), "4..32"), ((0.5,), "0.5"), ((8.0, 8.0), "8")]
    )
    def test_many_values_are_shown_by_their_ends(self, values: tuple[float, ...], text: str) -> None:
        assert span_of(values) == text

    def test_columns_are_aligned_by_what_is_seen(self) -> None:
        assert table(("a", "bb"), [("水", "x"), ("e\u0301", "y")]).splitlines() == [
            "  a   bb",
            "  水  x",
            "  e\u0301   y",
        ]

    def test_the_widest_column_is_cut_until_the_line_fits(self) -> None:
        lines = table(("name", "size"), [("a" * 40, "1 MB"), ("水" * 20, "2 MB")], limit=30).splitlines()
        assert lines[1] == "  " + "a" * 21 + "…  1 MB"
        assert lines[2] == "  " + "水" * 10 + "…   2 MB"

    def test_below_a_readable_width_nothing_more_is_cut(self) -> None:
        assert table(("name", "size"), [("a" * 40, "b" * 40)], limit=3).splitlines()[1] == "  aaaaaaa…  bbbbbbb…"

    def test_only_a_terminal_limits_the_width(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert len(table(("name",), [("a" * 400,)]).splitlines()[1]) == 402
        monkeypatch.setattr(console.sys.stdout, "isatty", lambda: True)
        monkeypatch.setenv("COLUMNS", "50")
        assert len(table(("name",), [("a" * 400,)]).splitlines()[1]) == 50


def test_packages_that_do_not_fit_together_are_one_line() -> None:
    """diffusers imports lazily, and makes a RuntimeError of what peft raises."""
    with pytest.raises(CommandError) as caught, needs_extra():
        try:
            raise ImportError("cannot import name 'EncoderDecoderCache'\nfrom 'transformers'")
        except ImportError as error:
            raise RuntimeError("Failed to import diffusers.loaders.peft") from error
    assert str(caught.value) == (
        "the installed packages do not fit together: Failed to import diffusers.loaders.peft; run, in a copy of the "
        'project: python -m pip install ".[demo]"'
    )
    with pytest.raises(RuntimeError, match="another matter"), needs_extra():
        raise RuntimeError("another matter")
