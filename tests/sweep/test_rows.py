"""Rows: what columns mean, what a row is called, and what is wrong with it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import lora_runtime
from lora_runtime import sweep
from lora_runtime.sweep import Row, SweepError, grid_rows, read_jobs
from lora_runtime.sweep.rows import checked_rows, read_row


def test_the_columns_of_a_row() -> None:
    row = read_row(
        {
            "name": "boat",
            "prompt": "a boat <lora:ink:0.7>",
            "negative": "people",
            "seed": "3",
            "width": "64",
            "height": 32,
            "steps": "8",
            "guidance_scale": "4.5",
            "mood": "calm",
        }
    )
    assert row == Row("boat", "a boat <lora:ink:0.7>", "people", 3, 64, 32, 8, 4.5, {"mood": "calm"})
    assert [tag.name for tag in row.tags] == ["ink"]


def test_what_is_left_out_or_empty_is_the_pipelines() -> None:
    row = read_row({"prompt": "a", "steps": "", "width": None})
    assert (row.negative, row.seed, row.width, row.steps, row.guidance_scale) == ("", 0, None, None, None)
    assert row.columns == {}


def test_names_that_a_pipeline_has_for_columns_mean_the_same() -> None:
    row = read_row({"prompt": "a", "negative_prompt": "b", "num_inference_steps": 3})
    assert (row.negative, row.steps, row.columns) == ("b", 3, {})


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({}, "it has no prompt"),
        ({"prompt": ""}, "it has no prompt"),
        ({"prompt": "a\ud800"}, "it has half of a character, or a NUL"),
        ({"prompt": "a", "negative_prompt": "b\0"}, r"negative is 'b\\x00': it has half of a character, or a NUL"),
        ({"prompt": 3}, "prompt is '3': give a text"),
        ({"prompt": "a", "seed": "-1"}, "seed is '-1': give a whole number from 0 to"),
        ({"prompt": "a", "seed": 1 << 64}, "seed is .*: give a whole number"),
        ({"prompt": "a", "seed": True}, "give a whole number"),
        ({"prompt": "a", "steps": "many"}, "steps is 'many': give a whole number from 1"),
        ({"prompt": "a", "steps": 2.5}, "give a whole number"),
        ({"prompt": "a", "width": 0}, "width is '0'"),
        ({"prompt": "a", "guidance_scale": "nan"}, "give a finite number"),
        ({"prompt": "a", "guidance_scale": [1]}, "give a number"),
        ({"prompt": "a", "guidance_scale": 10**400}, "give a number"),
        ({"prompt": "a", None: ["b"]}, "more cells than there are columns"),
    ],
)
def test_what_cannot_be_is_the_fault_of_the_row(given: dict[Any, Any], reason: str) -> None:
    row = read_row(given)
    assert re.search(reason, row.fault)
    assert row.key


def test_a_key_is_of_the_content_and_always_the_same() -> None:
    # sha256 of '["a boat <lora:ink:0.7>", "", 1, null, null, 8, null, []]', as `sha256sum` has it
    assert read_row({"prompt": "a boat <lora:ink:0.7>", "seed": 1, "steps": 8}).key == "38681f6453f8"
    assert read_row({"prompt": "a", "seed": 1}).key != read_row({"prompt": "a", "seed": 2}).key
    assert read_row({"prompt": "a", "mood": "x"}).key != read_row({"prompt": "a"}).key


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("boat", "boat"),
        ("boat_1.5-b", "boat_1.5-b"),
        ("Boot über See", r"Boot-über-See-[0-9a-f]{6}"),
        ("../../etc/passwd", r"etc-passwd-[0-9a-f]{6}"),
        ("a/b\\c:d", r"a-b-c-d-[0-9a-f]{6}"),
        ("CON", r"row-CON-[0-9a-f]{6}"),
        ("nul.txt", r"row-nul\.txt-[0-9a-f]{6}"),
        ("...", r"row-[0-9a-f]{6}"),
        (".hidden", r"hidden-[0-9a-f]{6}"),
        ("x" * 300, r"x{80}-[0-9a-f]{6}"),
    ],
)
def test_a_name_is_safe_as_that_of_a_file(name: str, key: str) -> None:
    assert re.fullmatch(key, read_row({"prompt": "a", "name": name}).key)


def test_names_that_become_alike_stay_apart() -> None:
    assert read_row({"prompt": "a", "name": "a/b"}).key != read_row({"prompt": "a", "name": "a b"}).key


def test_a_row_that_is_there_twice_is_painted_once() -> None:
    rows, notes = checked_rows([{"prompt": "a"}, {"prompt": "b"}, {"prompt": "a"}])
    assert [row.prompt for row in rows] == ["a", "b"]
    assert notes == ["1 row says the same as another: painted once"]


@pytest.mark.parametrize(
    "given",
    [
        [{"prompt": "a", "seed": "x"}, {"prompt": "a", "seed": 0}],
        [{"prompt": "a", "seed": 0}, {"prompt": "a", "seed": "x"}],
        [{"prompt": "a", "seed": "x"}, {"prompt": "a", "seed": "y"}, {"prompt": "a", "seed": -1}],
        [{"prompt": "a", "guidance_scale": "nan"}, {"prompt": "a"}],
        [{"prompt": 5}, {"prompt": None}],
        [{"prompt": "a", None: ["b"]}, {"prompt": "a"}, {"prompt": "a", None: ["c"]}],
        [{"name": "x", "prompt": "a", "seed": "x"}, {"name": "x", "prompt": "a"}],
        [Row("x", "a", fault="torn"), Row("x", "a")],
    ],
)
def test_a_bad_row_passes_for_no_other(given: list[Any]) -> None:
    rows, notes = checked_rows(given)
    assert len(rows) == len({row.key for row in rows}) == len({row.digest for row in rows}) == len(given)
    assert not any("painted once" in note for note in notes)


def test_cells_that_cannot_be_read_are_kept_as_they_were_given() -> None:
    assert read_row({"prompt": "a", "seed": "x", "steps": "many", "width": 8}).columns == {"seed": "x", "steps": "many"}


def test_a_name_of_two_rows_is_made_two_names() -> None:
    rows, notes = checked_rows([{"name": "x", "prompt": "a"}, {"name": "X", "prompt": "b"}])
    assert [row.prompt for row in rows] == ["a", "b"]
    assert rows[0].key == "x"
    assert rows[1].key == f"X-{rows[1].digest[:12]}"
    assert "got digits of their content" in notes[0]


def test_csv_is_read_with_its_columns_and_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "jobs.csv"
    path.write_bytes(
        b'\xef\xbb\xbfname,prompt,seed,mood\r\none,"a ""red"" boat,\r\nat sea",4,calm\r\ntwo,b,,\r\nthree\r\n'
    )
    one, two, three = read_jobs(path)
    assert (one.key, one.prompt, one.seed, one.columns) == ("one", 'a "red" boat,\r\nat sea', 4, {"mood": "calm"})
    assert (two.key, two.prompt, two.seed, two.columns) == ("two", "b", 0, {})
    assert "no prompt" in three.fault


def test_a_line_of_json_that_cannot_be_read_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "jobs.jsonl"
    path.write_text('{"prompt": "a\u2028b", "seed": 2}\n\n{"prompt": \n[1]\n{"prompt": "c"}\n', encoding="utf-8")
    first, torn, listed, last = read_jobs(path)
    assert (first.prompt, first.seed, last.prompt) == ("a\u2028b", 2, "c")
    assert torn.fault.startswith("line 3 cannot be read")
    assert listed.fault == "line 4 cannot be read: it is no object"


def test_toml_has_defaults_rows_and_grids(tmp_path: Path) -> None:
    path = tmp_path / "jobs.toml"
    path.write_text(
        """
        [defaults]
        steps = 8
        [[rows]]
        prompt = "a"
        steps = 9
        [[grid]]
        prompts = ["b", "c <lora:wash:1>"]
        seeds = "1-2"
        strengths = "ink: 0.3, 0.6"
        mood = "calm"
        """,
        encoding="utf-8",
    )
    rows = read_jobs(path)
    assert [(row.prompt, row.seed, row.steps) for row in rows] == [
        ("a", 0, 9),
        ("b<lora:ink:0.3>", 1, 8),
        ("b<lora:ink:0.3>", 2, 8),
        ("b<lora:ink:0.6>", 1, 8),
        ("b<lora:ink:0.6>", 2, 8),
        ("c <lora:wash:1><lora:ink:0.3>", 1, 8),
        ("c <lora:wash:1><lora:ink:0.3>", 2, 8),
        ("c <lora:wash:1><lora:ink:0.6>", 1, 8),
        ("c <lora:wash:1><lora:ink:0.6>", 2, 8),
    ]
    assert all(row.columns == {"mood": "calm"} for row in rows[1:])


def test_a_grid_over_loras_puts_each_in_the_place_of_the_first() -> None:
    grid = {"prompt": "a <lora:ink:0.5>", "loras": ["wash", "None"], "strengths": ["0-1(+0.5)"], "name": "g"}
    rows = grid_rows(grid)
    assert [row.prompt for row in rows] == [
        "a <lora:wash:0>",
        "a <lora:wash:0.5>",
        "a <lora:wash:1>",
        "a ",
        "a ",
        "a ",
    ]
    assert len({row.key for row in rows}) == 6


def test_the_axes_of_a_grid_reach_the_loras_of_a_set(tmp_path: Path) -> None:
    (tmp_path / "both.set.txt").write_text("<lora:ink:1> <lora:oil:0.5>", encoding="utf-8")
    path = tmp_path / "jobs.toml"
    path.write_text('[grid]\nprompt = "a <set:both:0.5>"\nstrengths = "0.3, ink: 0.6"\n', encoding="utf-8")
    assert [(row.prompt, row.fault) for row in read_jobs(path, loras=tmp_path)] == [
        ("a <lora:ink:0.3><lora:oil:0.3>", ""),
        ("a <lora:ink:0.6><lora:oil:0.25>", ""),
    ]
    rows = grid_rows({"prompt": "a <set:both>", "loras": ["wash"]}, tmp_path)
    assert [row.prompt for row in rows] == ["a <lora:wash:1><lora:oil:0.5>"]


def test_a_grid_of_a_set_that_is_not_there_fails_and_costs_only_its_rows(tmp_path: Path) -> None:
    lost, other, found, _ = grid_rows(
        {"prompts": ["a <set:none>", "a <lora:ink:1>"], "strengths": "0.3, 0.6"}, tmp_path
    )
    assert lost.fault.startswith("<set:none>: no such set")
    assert len(checked_rows([lost, other])[0]) == 2
    assert (found.prompt, found.fault) == ("a <lora:ink:0.3>", "")
    (plain,) = grid_rows({"prompts": ["a <set:none>"], "seeds": [1]}, tmp_path)
    assert (plain.prompt, plain.fault) == ("a <set:none>", "")  # which the sweep says


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("jobs.txt", "", "rows are read from .csv, .jsonl, .toml"),
        ("jobs.jsonl", "\n", "there is no row in it"),
        ("jobs.toml", "rows = [", "no TOML file"),
        ("jobs.toml", "row = 1", r"has row: known are \[defaults\], \[\[rows\]\] and \[\[grid\]\]"),
        ("jobs.toml", "rows = 1", r"rows is no table: write \[\[rows\]\]"),
        ("jobs.toml", "defaults = 1", "defaults is no table"),
        (
            "jobs.toml",
            '[grid]\nprompt = "a"',
            "a grid without an axis: give it models, prompts, loras, strengths, seeds",
        ),
        ("jobs.toml", '[grid]\nprompt = "a"\nseeds = 3', "seeds of a grid is '3': give a list of numbers"),
        ("jobs.toml", '[grid]\nprompt = "a"\nseeds = []', "give at least one value"),
        ("jobs.toml", '[grid]\nprompt = "a"\nseeds = "1-999999"', "100000 are the most"),
        ("jobs.toml", '[grid]\nprompt = "a"\nseeds = "1-1000"\nstrengths = "0-1[500]"', "a grid of 500000 rows"),
        ("jobs.toml", '[grid]\nprompt = "a"\nstrengths = "ink: much"', "neither a number nor a range"),
    ],
)
def test_a_file_that_can_be_no_sweep_says_why(tmp_path: Path, name: str, text: str, reason: str) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SweepError, match=reason) as caught:
        read_jobs(path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_no_text_says_so(tmp_path: Path) -> None:
    path = tmp_path / "jobs.csv"
    path.write_bytes(b"prompt\n\xff\n")
    with pytest.raises(SweepError, match="cannot be read"):
        read_jobs(path)


def test_files_are_read_and_planned_without_torch() -> None:
    code = (
        "import sys; from lora_runtime.sweep import read_jobs, grid_rows, Row, SweepError;"
        "from lora_runtime.sweep import dispatch, manifest, page, plan;"
        "print({'torch', 'numpy', 'PIL'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_every_public_name_is_there_and_says_what_it_is() -> None:
    assert all(getattr(sweep, name).__doc__ for name in sweep.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'swep'"):
        sweep.swep  # noqa: B018


def test_the_file_and_the_grid_of_the_page_are_read(tmp_path: Path) -> None:
    """docs/sweep.md shows a file in TOML: its rows are those that it says."""
    text = (Path(__file__).parents[2] / "docs" / "sweep.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"^```toml\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    (tmp_path / "jobs.toml").write_text(shown, encoding="utf-8")
    rows = read_jobs(tmp_path / "jobs.toml")
    assert len(rows) == 1 + 2 * 2 * 5
    assert not any(row.fault for row in rows)
    assert all(lora_runtime.parse_prompt(row.prompt).diagnostics == () for row in rows)
