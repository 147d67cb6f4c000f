"""`lora-runtime plot`: the values are those of docs/syntax.md, worked out by hand."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from commands import Command


def columns(text: str) -> dict[str, list[str]]:
    """Return the columns of the first table of an output by their titles."""
    lines = [line.split() for line in text.split("\n\n")[0].splitlines()]
    start = next(index for index, words in enumerate(lines) if words[:1] == ["step"])
    return {title: [row[place] for row in lines[start + 1 :]] for place, title in enumerate(lines[start])}


def test_the_table_has_the_strength_of_each_tag_at_each_step(command: Command) -> None:
    result = command("plot", "--text", "--steps", 5, "<lora:ink:te=9:unet=1@0,0@1> <lora:oil:0.7:step=1-3>")
    assert (result.status, result.err) == (0, "")
    assert result.out == (
        "  step  ink   oil\n  0     1     0\n  1     0.75  0.7\n  2     0.5   0.7\n  3     0.25  0\n  4     0     0\n"
    )


def test_the_second_pass_has_a_table_of_its_own(command: Command) -> None:
    first, second = command("plot", "--text", "--steps", 2, "<lora:ink:1:hr=0.3> <lora:oil:0.5>").out.split("\n\n")
    assert first.splitlines() == ["first pass", "  step  ink  oil", "  0     1    0.5", "  1     1    0.5"]
    assert second.splitlines() == ["second pass (hires)", "  step  ink  oil", "  0     0.3  0.5", "  1     0.3  0.5"]


def test_brackets_count_in_their_scope(command: Command) -> None:
    prompt = "[<lora:ink>|<lora:oil>]"
    assert columns(command("plot", "--text", "--steps", 2, prompt).out)["ink"] == ["1", "1"]
    edited = columns(command("plot", "--text", "--steps", 2, "--scope", "edit", prompt).out)
    assert (edited["ink"], edited["oil"]) == (["1", "0"], ["0", "1"])


def test_the_order_of_strengths_is_the_dialects(command: Command) -> None:
    arguments = ("plot", "--text", "--steps", 1, "<lora:ink:0.5:0.9>")
    assert columns(command(*arguments).out)["ink"] == ["0.9"]
    assert columns(command(*arguments, "--dialect", "comfy").out)["ink"] == ["0.5"]


@pytest.mark.parametrize("fields", ["1@14sigma,0@2sigma", "1:start=7sigma", "1:stop=7sigma", "1:hr=1@7sigma,0@2sigma"])
def test_what_depends_on_noise_levels_is_said_and_not_guessed(command: Command, fields: str) -> None:
    out = command("plot", "--text", "--steps", 3, f"<lora:ink:{fields}>").out
    assert "ink: depends on noise levels, which only a sampler knows" in out
    assert "?" in out


def test_the_expert_that_is_meant_stands_beside_the_name(command: Command) -> None:
    assert "ink (transformer_2)" in command("plot", "--text", "<lora:ink:low>").out


def blocks(out: str) -> list[tuple[str, str]]:
    """Return the rows of the table of blocks."""
    lines = out.split("\n\n")[1].splitlines()[2:]
    return [(where, value) for where, value in (re.split(r"\s{2,}", line.strip()) for line in lines)]


def test_block_weights_have_a_table_with_equal_neighbours_together(command: Command) -> None:
    result = command("plot", "--text", "<lora:ink:0.5:IN04-08=0.5:OUT11=0:*attn1*=0.2:M00=0@0,1@1>")
    assert blocks(result.out) == [
        ("BASE to IN03", "0.5"),
        ("IN04 to IN08", "0.25"),
        ("IN09 to IN11", "0.5"),
        ("M00", "0.5 × 0@0,1@1"),
        ("OUT00 to OUT10", "0.5"),
        ("OUT11", "0"),
        ("*attn1*", "× 0.2"),
    ]


def test_the_strengths_of_thirds_count_in_place_of_the_denoisers(command: Command) -> None:
    out = command("plot", "--text", "<lora:ink:te=0.1:unet=1:in=0.5:out=0.2>").out
    rows = [("BASE", "0.1"), ("IN00 to IN11", "0.5"), ("M00", "1"), ("OUT00 to OUT11", "0.2")]
    assert blocks(out) == rows


def test_the_blocks_of_flux_are_shown_where_a_rule_names_one(command: Command) -> None:
    out = command("plot", "--text", "<lora:ink:1:T5=0.1:D00-18=0.5:S37=0:IN=0.7>").out
    assert blocks(out) == [
        ("CLIP", "1"),
        ("T5", "0.1"),
        ("IN", "0.7"),
        ("D00 to D18", "0.5"),
        ("S00 to S36", "1"),
        ("S37", "0"),
        ("OUT", "1"),
    ]


def test_random_ratios_are_those_of_the_seed(command: Command) -> None:
    prompt = "<lora:ink:1:lbw=1,R,R,U,U,1,1,1,1,1,1,1>"
    outs = [command("plot", "--text", "--seed", seed, prompt).out for seed in (1, 1, 2)]
    assert outs[0] == outs[1] != outs[2]


def test_a_random_ratio_of_a_pattern_keeps_its_letter(command: Command) -> None:
    assert "× R" in command("plot", "--text", "<lora:ink:1:lbwe=IN05-OUT05;*attn*;R>").out


def test_what_is_wrong_with_the_prompt_goes_to_stderr(command: Command) -> None:
    result = command("plot", "--text", "<lora:ink> <lora:oil:oops>")
    assert result.status == 0
    assert "oops" in result.err
    assert "oil" not in result.out


def test_without_a_tag_there_is_nothing_to_plot(command: Command) -> None:
    result = command("plot", "a red circle")
    assert (result.status, result.err) == (2, "lora-runtime: error: there is no LoRA tag in the prompt to plot\n")


def test_a_dash_reads_standard_input(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("a <lora:ink:0.3>\n"))
    assert columns(command("plot", "--text", "--steps", 1, "-").out)["ink"] == ["0.3"]


@pytest.mark.parametrize("steps", ["0", "-1", "many", "10001", "9" * 30])
def test_the_number_of_steps_is_bounded(command: Command, steps: str) -> None:
    result = command("plot", "--text", f"--steps={steps}", "<lora:ink>")
    assert result.status == 2
    assert "argument --steps: " in result.err


def test_the_place_of_the_plot_is_checked_first(command: Command, tmp_path: Path) -> None:
    result = command("plot", "<lora:ink>", "--out", tmp_path / "a.zip")
    assert result.err.endswith("a.zip: give a name that ends in .png, .svg or .pdf\n")


def test_without_matplotlib_it_says_what_to_install(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = command("plot", "<lora:ink>", "--out", tmp_path / "a.png")
    assert result.status == 2
    assert result.err.endswith('is not installed; run, in a copy of the project: python -m pip install ".[plot]"\n')


class Figure:
    """What `plot` uses of matplotlib's Figure; keeps what was asked of each panel."""

    last: Figure

    def __init__(self, **options: Any) -> None:
        Figure.last = self
        self.panels: list[Panel] = []

    def subplots(self, rows: int, columns: int, *, squeeze: bool, height_ratios: list[float]) -> Any:
        assert (columns, squeeze, len(height_ratios)) == (1, False, rows)
        self.panels = [Panel() for _ in range(rows)]
        return np.array(self.panels, dtype=object).reshape(rows, 1)

    def savefig(self, path: Path) -> None:
        path.write_bytes(b"a plot")


class Panel:
    """What was asked of one panel: (method, arguments, keywords)."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # numpy asks whether this is an array
            raise AttributeError(name)
        return lambda *arguments, **options: self.asked.append((name, arguments, options))

    def of(self, name: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        return [(arguments, options) for method, arguments, options in self.asked if method == name]


@pytest.fixture
def _matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    figure = ModuleType("matplotlib.figure")
    figure.Figure = Figure  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "matplotlib", ModuleType("matplotlib"))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", figure)


@pytest.mark.usefixtures("_matplotlib")
def test_the_plot_has_a_panel_for_each_pass_and_each_table(command: Command, tmp_path: Path) -> None:
    prompt = "<lora:_$x$:1@0,0@1:hr=0.5> <lora:ink:1:OUT=0> <lora:oil:1@7sigma,0@2sigma>"
    result = command("plot", prompt, "--steps", 3, "--out", tmp_path / "a.png")
    assert result == (0, f"{tmp_path / 'a.png'}\n", "")
    assert (tmp_path / "a.png").exists()
    first, second, table = Figure.last.panels
    lines = first.of("step")
    # The last value holds to the end of the last step.
    assert [[*map(list, arguments)] for arguments, _ in lines] == [
        [[0, 1, 2, 3], [1, 0.5, 0, 0]],
        [[0, 1, 2, 3], [1, 1, 1, 1]],
    ]
    assert {options["where"] for _, options in lines} == {"post"}
    assert [options["label"] for _, options in lines] == [r" _\$x\$", "ink"]
    assert [options["label"] for _, options in first.of("plot")] == ["oil (by noise level: not drawn)"]
    assert list(second.of("step")[0][0][1]) == [0.5, 0.5, 0.5, 0.5]
    assert table.of("table")[0][1]["cellText"] == [["BASE to M00", "1"], ["OUT00 to OUT11", "0"]]


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_matplotlib_writes_the_plot(command: Command, tmp_path: Path, ending: str) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / f"a.{ending}"
    prompt = "<lora:_$x$:1@0,0@1:hr=0.5> <lora:ink:1:OUT=0:*attn1*=0> <lora:oil:1@7sigma,0@2sigma>"
    assert command("plot", prompt, "--out", out).status == 0
    assert out.read_bytes()[:4] in (b"\x89PNG", b"<?xm", b"%PDF")
