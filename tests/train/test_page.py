"""docs/train.md: its commands run, and its table is that of the numbers."""

from __future__ import annotations

import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest

from lora_runtime.cli import main
from lora_runtime.metadata import describe, read_header
from lora_runtime.train.buckets import bucket_sizes
from lora_runtime.train.config import Config

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "train.md").read_text(encoding="utf-8")


def toml(value: object) -> str:
    """Return a value as a line of TOML has it; "" for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(map(toml, value)) + "]"
    return f'"{value}"' if isinstance(value, (str, Path)) else str(value)


def test_the_table_has_each_number_and_its_default() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (?:`(.*?)`)? ?\| .+ \|$", PAGE, re.MULTILINE)
    assert rows == [(field.name, toml(field.default)) for field in fields(Config)]


def test_the_sizes_on_the_page_are_those_of_512() -> None:
    row = next(line for line in PAGE.splitlines() if line.startswith("| 256 × "))
    upright = set()
    for cell in row.strip("|").split("|")[:-1]:
        width, heights = cell.split("×")
        upright |= {(int(width), int(height)) for height in heights.split(",")}
    assert upright | {(h, w) for w, h in upright} == set(bucket_sizes((512, 512), 256, 1024, 64))


def test_what_the_page_shows_and_links_to_is_there() -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", PAGE)
    assert links
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []


def test_the_numbers_on_the_page_are_those_of_the_demo() -> None:
    block = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)[0]
    said = (ROOT / "training" / "robot.toml").read_text(encoding="utf-8")
    assert said.partition("\n")[0].startswith("#") and said.partition("\n")[2] == block


@pytest.mark.slow
def test_the_commands_of_the_page_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With its own numbers, but for two steps of two pictures."""
    pytest.importorskip("peft")
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "pictures").symlink_to(ROOT / "training" / "pictures")
    (tmp_path / "lora_runtime").symlink_to(ROOT / "lora_runtime")
    numbers = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)[0]
    small = re.sub(r"(max_train_steps|train_batch_size) = \d+", r"\1 = 2", numbers)
    (tmp_path / "training" / "robot.toml").write_text(small, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"^    \$ lora-runtime (.*)$", PAGE, re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["train", "train", "run", "inspect"]
    written = tmp_path / "outputs" / "robot.safetensors"
    ranks = []
    for command in commands:
        assert main(shlex.split(command)) == 0, command
        told = describe(read_header(written))
        ranks.append(told.ranks)
        assert (told.alias, told.trigger_words[0]) == ("robot", "robot")
    assert ranks[0] == (8,) and ranks[1] == (4, 8)
    assert written.with_suffix(".png").exists() and (tmp_path / "robot.png").exists()
    assert "robot" in capsys.readouterr().out
    code = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0]
    exec(compile(code, "docs/train.md", "exec"), {"__name__": "page"})
    assert capsys.readouterr().out.count("Step(") == 2
    assert (tmp_path / "outputs" / "again.safetensors").exists()
