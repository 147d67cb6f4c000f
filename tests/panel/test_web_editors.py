"""What the panel's editors do with what a person draws and types, run by Node on a page of stand-ins."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

NODE = shutil.which("node")
WEB = Path(__file__).parents[2] / "lora_runtime" / "panel" / "web"

pytestmark = pytest.mark.skipif(NODE is None, reason="Node is not installed; the modules run in browsers")

# An element that takes everything, 100 units wide and high.
PAGE = """
const element = () => ({
    heard: {}, addEventListener(name, does) { this.heard[name] = does; },
    append() {}, setAttribute() {}, getAttribute: () => null, replaceChildren() {}, setPointerCapture() {},
    focus() {}, matches: () => false, remove() {}, classList: {add() {}}, style: {setProperty() {}},
    dataset: {}, value: "",
    getBoundingClientRect: () => ({left: 0, top: 0, width: 100, height: 100}),
});
globalThis.document = {createElement: element, createElementNS: element};
"""
REGION = """
const {RegionEditor} = await import("./region.js");
const made = [];
const stack = {picture: null, pictureSize: [1, 1], address: () => ""};
const region = new RegionEditor((field, value) => made.push([field, value]), stack);
const at = (x, y) => ({button: 0, preventDefault() {}, clientX: x, clientY: y, target: null, pointerId: 1});
region.box = [0.25, 0.25, 0.75, 0.75];
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with all modules, which Node takes for modules."""
    made = tmp_path_factory.mktemp("web")
    for path in WEB.glob("*.js"):
        (made / path.name).write_bytes(path.read_bytes())
    (made / "package.json").write_text('{"type": "module"}')
    return made


def run(folder: Path, program: str) -> Any:
    """Return what a program prints."""
    (folder / "program.js").write_text(PAGE + program, encoding="utf-8")
    assert NODE is not None
    done = subprocess.run([NODE, "program.js"], cwd=folder, capture_output=True, check=True, text=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("edge", "typed", "box"),
    [
        (0, "80", "0.74,0.25,0.75,0.75"),
        (1, "-20", "0.25,0,0.75,0.75"),
        (2, "10", "0.25,0.25,0.26,0.75"),
        (3, "500", "0.25,0.25,0.75,1"),
        (2, "60", "0.25,0.25,0.6,0.75"),
        (0, "", None),
        (3, "x", None),
    ],
)
def test_an_edge_that_is_typed_stays_between_its_neighbours(
    folder: Path, edge: int, typed: str, box: str | None
) -> None:
    program = f"region.typed({edge}, {json.dumps(typed)}); console.log(JSON.stringify([made, region.box]));"
    made, shown = run(folder, REGION + program)
    assert made == ([] if box is None else [["box", box]])
    assert shown == ([0.25, 0.25, 0.75, 0.75] if box is None else [float(each) for each in box.split(",")])


def test_a_box_that_the_browser_breaks_off_is_what_it_was(folder: Path) -> None:
    program = "const {heard} = region.plane;"
    program += "heard.pointerdown(at(30, 30)); heard.pointermove(at(60, 60)); heard.pointercancel({});"
    made, shown, drag = run(folder, f"{REGION}{program}console.log(JSON.stringify([made, region.box, region.drag]));")
    assert (made, shown, drag) == ([], [0.25, 0.25, 0.75, 0.75], None)


def test_a_box_that_is_drawn_out_of_the_picture_ends_at_its_edge(folder: Path) -> None:
    program = "region.box = null; region.press(at(0.3, 50)); region.pull(at(-40, 90)); region.drop();"
    assert run(folder, f"{REGION}{program}console.log(JSON.stringify(made));") == [["box", "0,0.5,0.01,0.9"]]


def test_two_files_without_an_angle_are_said_to_make_no_change(folder: Path) -> None:
    pair = {"names": ["ink", "blank"], "layers": 3, "fighting": 0, "cosine": None}
    program = 'const {sentence} = await import("./conflicts.js");'
    program += f"console.log(JSON.stringify(sentence({json.dumps(pair)})));"
    assert run(folder, program) == "ink or blank makes no change in their 3 common layers"


def test_a_point_that_the_browser_breaks_off_is_where_it_was(folder: Path) -> None:
    program = """
const {CurveEditor} = await import("./curve.js");
const made = [];
const curve = new CurveEditor((value) => made.push(value));
curve.show("fraction", [[0, 1], [1, 0]], "linear", [-1, 2]);
curve.points[0].heard.pointerdown({preventDefault() {}, pointerId: 1});
curve.plane.heard.pointermove({clientX: 50, clientY: 10});
const moved = curve.keys;
curve.plane.heard.pointercancel({});
console.log(JSON.stringify([made, curve.keys, moved]));
"""
    made, shown, moved = run(folder, program)
    assert (made, shown) == ([], [[0, 1], [1, 0]])
    assert moved != shown
