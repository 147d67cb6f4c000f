"""What the panel's modules do with texts and numbers, run by Node."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lora_runtime.prompt import Curve, Moment, parse_prompt
from lora_runtime.prompt.strength import CURVES

NODE = shutil.which("node")
WEB = Path(__file__).parents[2] / "lora_runtime" / "panel" / "web"

pytestmark = pytest.mark.skipif(NODE is None, reason="Node is not installed; the modules run in browsers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the module under the name by which every Node knows a module."""
    made = tmp_path_factory.mktemp("web")
    (made / "text.mjs").write_bytes((WEB / "text.js").read_bytes())
    return made


def call(folder: Path, function: str, *arguments: list[Any]) -> list[Any]:
    """Return what a function gives for each list of arguments."""
    program = (
        f"import {{{function}}} from './text.mjs'; import {{readFileSync}} from 'fs';"
        "const given = JSON.parse(readFileSync(0, 'utf8'));"
        f"process.stdout.write(JSON.stringify(given.map((each) => {function}(...each))));"
    )
    (folder / f"{function}.mjs").write_text(program, encoding="utf-8")
    assert NODE is not None
    done = subprocess.run(
        [NODE, f"{function}.mjs"], cwd=folder, input=json.dumps(arguments), capture_output=True, check=True, text=True
    )
    answers: list[Any] = json.loads(done.stdout)
    return answers


def test_a_cursor_stays_at_its_word_when_a_span_changes_its_length(folder: Path) -> None:
    span = [4, 8]
    cases = [(0, 2, 0), (4, 2, 4), (5, 2, 5), (7, 2, 6), (8, 2, 6), (12, 2, 10), (12, 9, 17), (5, 0, 4), (8, 0, 4)]
    found = call(folder, "moved", *([place, span, length] for place, length, _ in cases))
    assert found == [after for *_, after in cases]


def test_a_tag_is_unfinished_while_its_end_is_to_come(folder: Path) -> None:
    cases = [
        ("a <lora:in|", True),
        ("a <LoRA:ink:0.|", True),
        ("a <lora:in| <lora:oil:1>", True),
        ("a <lora:i|nk:1>", False),
        ("a <lora:ink:1>|", False),
        ("a <lora|", False),
        ("a <lora:in\n|", False),
        ("|<lora:in", False),
    ]
    found = call(folder, "isUnfinished", *([text.replace("|", ""), text.index("|")] for text, _ in cases))
    assert found == [unfinished for _, unfinished in cases]


@pytest.mark.parametrize("shape", CURVES)
def test_the_line_that_is_drawn_is_the_one_that_is_applied(folder: Path, shape: str) -> None:
    keys = [[0.1, 0.2], [0.5, 1.0], [0.5, 0.4], [0.9, 0.0]]
    text = ",".join(f"{value}@{place}" for place, value in keys)
    [tag] = parse_prompt(f"<lora:x:{text}:curve={shape}>").tags
    assert isinstance(tag.unet, Curve)
    drawn = call(folder, "valueAt", *([keys, shape, step / 40] for step in range(41)))
    assert drawn == pytest.approx([tag.unet.at(Moment(step, 41)) for step in range(41)], abs=6e-4)


def test_a_new_point_lies_on_the_line_in_the_longest_gap(folder: Path) -> None:
    assert call(folder, "withKey", [[[0, 0], [1, 1]], "linear"], [[[0, 0], [0.2, 1], [1, 0]], "linear"]) == [
        [[0, 0], [0.5, 0.5], [1, 1]],
        [[0, 0], [0.2, 1], [0.6, 0.5], [1, 0]],
    ]
    assert call(folder, "withKey", [[[0, 1]], "linear", 0.7], [[[0.5, 1]], "hold"]) == [
        [[0, 1], [0.7, 1]],
        [[0.5, 1], [0.5, 1]],
    ]


def test_a_point_stays_between_its_neighbours(folder: Path) -> None:
    keys = [[0, 0], [0.5, 0.5], [1, 1]]
    assert call(folder, "withMoved", [keys, 1, 2, 0.8], [keys, 1, -1, 0.123], [keys, 0, -1, 0], [keys, 2, 5, 1]) == [
        [[0, 0], [1, 0.8], [1, 1]],
        [[0, 0], [0, 0.12], [1, 1]],
        keys,
        [[0, 0], [0.5, 0.5], [5, 1]],
    ]


def test_a_box_is_drawn_between_any_two_places_and_stays_in_the_picture(folder: Path) -> None:
    places = [([0.2, 0.3], [0.6, 0.8]), ([0.6, 0.8], [0.2, 0.3]), ([0.6, 0.2], [0.1, 0.9]), ([0.5, 0.5], [1.4, -0.3])]
    assert call(folder, "drawnBox", *map(list, places)) == [
        [0.2, 0.3, 0.6, 0.8],
        [0.2, 0.3, 0.6, 0.8],
        [0.1, 0.2, 0.6, 0.9],
        [0.5, 0, 1, 0.5],
    ]


def test_a_box_is_moved_as_far_as_the_picture_goes_and_keeps_its_size(folder: Path) -> None:
    box = [0.2, 0.3, 0.5, 0.7]
    moves = [[box, [0.1, -0.1]], [box, [0.9, 0]], [box, [-0.9, 0.9]]]
    assert call(folder, "movedBox", *moves) == [[0.3, 0.2, 0.6, 0.6], [0.7, 0.3, 1, 0.7], [0, 0.6, 0.3, 1]]


def test_an_edge_stays_in_the_picture_and_before_the_one_opposite(folder: Path) -> None:
    box = [0.2, 0.3, 0.5, 0.7]
    edges = [[box, [-0.5, 0.1, 0, 0]], [box, [0.9, 0, 0, 0]], [box, [0, 0, 0.9, -0.9]], [box, [0, 0.5, 0.1, 0]]]
    assert call(folder, "resizedBox", *edges) == [
        [0, 0.4, 0.5, 0.7],
        [0.49, 0.3, 0.5, 0.7],
        [0.2, 0.3, 1, 0.31],
        [0.2, 0.69, 0.6, 0.7],
    ]


def test_a_box_is_written_as_the_parser_reads_it(folder: Path) -> None:
    [text] = call(folder, "boxText", [[0.1 + 0.2, 0, 0.6180339, 1]])
    [tag] = parse_prompt(f"<lora:x:1:box={text}>").tags
    assert tag.conditions.region is not None
    assert tag.conditions.region.box == (0.3, 0, 0.62, 1)
