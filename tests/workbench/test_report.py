"""`report`: what several files do together, against dense matrices in float64, and its advice put to the test."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from commands import Command
from torch import Tensor
from workbench.files import CONV_IN, SHAPES, TEXT, TO_K, TO_Q, delta, factors, written

from lora_runtime.errors import LoraFileError
from lora_runtime.lora import load_lora
from lora_runtime.workbench import report

STEMS = (TO_Q, CONV_IN, TEXT, TO_K)
BLOCKS = {TO_Q: "IN01", CONV_IN: "IN00", TEXT: "BASE", TO_K: "OUT03"}
FILES = {
    "ink": factors(TO_Q, 4) | factors(CONV_IN, 3) | factors(TEXT, 2),
    "wash": factors(TO_Q, 2, seed=7) | factors(CONV_IN, 5, seed=8) | factors(TO_K, 2, seed=9),
    "oil": factors(TO_Q, 3, seed=11) | factors(TO_K, 1, seed=12) | factors(TEXT, 1, seed=13),
}
PROMPT = "a boat <lora:ink:0.7> <lora:wash:-0.4> <lora:oil:1.5>"
STRENGTHS = {"ink": 0.7, "wash": -0.4, "oil": 1.5}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, tensors in FILES.items():
        written(tmp_path / f"{name}.safetensors", tensors)
    return tmp_path


def changes(folder: Path, name: str, strength: float = 1.0) -> dict[str, Tensor]:
    """Return s·Δ of each module that a file has, float64."""
    lora = load_lora(folder / f"{name}.safetensors")
    return {stem: delta(lora, stem) * strength for stem in lora.adapters}


def together(*files: dict[str, Tensor]) -> float:
    """Return ‖ΣΔ‖ over all modules."""
    sums = [sum((each[stem] for each in files if stem in each), torch.zeros(SHAPES[stem]).double()) for stem in STEMS]
    return float(torch.stack([each.square().sum() for each in sums]).sum().sqrt())


def test_norms_of_each_and_of_all_are_those_of_the_dense_changes(folder: Path) -> None:
    found = report([PROMPT], loras=[folder])
    dense = {name: changes(folder, name, strength) for name, strength in STRENGTHS.items()}
    assert found.names == ("ink", "wash", "oil")
    assert list(found.blocks) == ["BASE", "IN00", "IN01", "OUT03"]
    assert found.total.norms == pytest.approx([together(each) for each in dense.values()], rel=1e-9)
    assert found.total.together == pytest.approx(together(*dense.values()), rel=1e-9)
    for stem, block in BLOCKS.items():
        own = [{stem: each[stem]} if stem in each else {} for each in dense.values()]
        assert found.blocks[block].together == pytest.approx(together(*own), rel=1e-9)
        assert found.blocks[block].modules == tuple(len(each) for each in own)
        assert found.blocks[block].norms == pytest.approx([together(each) for each in own], rel=1e-9)


def test_each_two_files_have_their_cosine_and_their_signs(folder: Path) -> None:
    found = report([PROMPT], loras=[folder])
    ink, wash, oil = (changes(folder, name, strength)[TO_Q] for name, strength in STRENGTHS.items())
    pairs = found.blocks["IN01"].pairs
    assert [pair.files for pair in pairs] == [(0, 1), (0, 2), (1, 2)]
    for pair, (one, other) in zip(pairs, ((ink, wash), (ink, oil), (wash, oil)), strict=True):
        assert pair.cosine == pytest.approx(float((one * other).sum() / one.norm() / other.norm()), rel=1e-9)
        assert pair.conflicts == pytest.approx(float((one * other < 0).double().mean()))
    assert [pair.cosine is None for pair in found.blocks["BASE"].pairs] == [True, False, True]


def test_the_strengths_that_are_suggested_have_the_norm_of_the_strongest(folder: Path) -> None:
    found = report([PROMPT], loras=[folder])
    factor = found.balance
    assert 0 < factor < 1
    scaled = [changes(folder, name, strength * factor) for name, strength in STRENGTHS.items()]
    assert together(*scaled) == pytest.approx(max(found.total.norms), rel=1e-9)
    listed = ", ".join(f"{name} at {strength * factor:.2g}" for name, strength in STRENGTHS.items())
    assert found.suggestions[-1].endswith(f"all together have the norm of the strongest alone: {listed}")


@pytest.mark.parametrize("share", [0.9, 0.2])
def test_at_the_ratio_that_is_suggested_a_file_loses_what_is_said(folder: Path, share: float) -> None:
    # Against ink by its own change, and with one of its own beside: nearly as strong, and much weaker.
    ink = changes(folder, "ink")[TO_Q]
    foe = -share * ink + 0.1 * delta(load_lora(folder / "oil.safetensors"), TO_Q)
    written(folder / "foe.safetensors", {f"{TO_Q}.diff": foe.float()})
    found = report(["<lora:ink:1:IN00=0:BASE=0><lora:foe:1>"], loras=[folder])
    said = re.fullmatch(
        r"ink and foe fight in IN01: .*; try (\w+) with IN01=([\d.]+), and (\w+) loses 30%", found.suggestions[0]
    )
    assert said is not None
    changed, ratio, other = said[1], float(said[2]), said[3]
    sides = {"ink": ink, "foe": foe}
    lost = -ratio * float((sides[changed] * sides[other]).sum() / sides[other].square().sum())
    assert lost == pytest.approx(0.3, rel=0.05)  # of a ratio with two digits
    assert changed == ("foe" if share == 0.9 else "ink")


def test_blocks_in_a_row_that_fight_are_one_and_others_are_not(folder: Path) -> None:
    pattern = "lora_unet_up_blocks_1_attentions_{}_transformer_blocks_0_attn1_to_k"
    stems = [pattern.format(index) for index in range(3)]
    tensors = [factors(stem, 2, seed=index, shape=SHAPES[TO_K]) for index, stem in enumerate(stems)]
    written(folder / "one.safetensors", {key: value for each in tensors for key, value in each.items()})
    for name, signs in (("all", (-1, -1, -1)), ("some", (-1, 1, -1))):
        turned = {
            key: value * (sign if key.endswith("up.weight") else 1)
            for each, sign in zip(tensors, signs, strict=True)
            for key, value in each.items()
        }
        written(folder / f"{name}.safetensors", turned)
    every = report(["<lora:one:1><lora:all:1>"], loras=[folder]).suggestions
    assert [said.partition(" fight in ")[2][:10] for said in every] == ["OUT03-05: "]
    some = report(["<lora:one:1><lora:some:1>"], loras=[folder]).suggestions
    assert sorted(said.partition(" fight in ")[2][:6] for said in some if " fight in " in said) == ["OUT03:", "OUT05:"]


def test_one_file_alone_has_no_pairs_and_is_left_as_it_is(folder: Path) -> None:
    found = report([folder / "ink.safetensors"])
    assert (found.balance, found.suggestions, found.total.pairs) == (1.0, (), ())
    with pytest.raises(LoraFileError, match="ink: no matrix is changed at these strengths; give others than 0"):
        report(["<lora:ink:0>"], loras=[folder])


def test_a_model_gives_the_norms_of_its_weights(folder: Path) -> None:
    (folder / "unet").mkdir()
    key = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    written(folder / "unet" / "model.safetensors", {key: torch.ones(12, 20)})
    found = report([PROMPT], loras=[folder], model=folder / "unet")
    assert found.blocks["IN01"].base == pytest.approx(240**0.5)
    assert found.blocks["IN00"].base is None


def test_the_command_prints_tables_and_writes_a_picture(command: Command, folder: Path) -> None:
    result = command("report", PROMPT, "--loras", folder)
    assert (result.status, result.err) == (0, "")
    lines = result.out.splitlines()
    assert lines[0] == "1: ink, 2: wash, 3: oil"
    assert lines[1].split() == ["block", "‖Δ1‖", "‖Δ2‖", "‖Δ3‖", "together", "rank", "1", "rank", "2", "rank", "3"]
    assert [line.split()[0] for line in lines[2:7]] == ["BASE", "IN00", "IN01", "OUT03", "all"]
    assert [line for line in lines if " and " in line][:3] == ["ink and wash", "ink and oil", "wash and oil"]
    assert json.loads(command("report", PROMPT, "--loras", folder, "--json").out)["names"] == ["ink", "wash", "oil"]
    wrong = command("report", PROMPT, "--loras", folder, "--picture", folder / "map.txt")
    assert (wrong.status, "--picture" in wrong.err) == (2, True)


class Image:
    """What `report` reads of what imshow gives: a colour by the value, dark below a half."""

    cmap = staticmethod(lambda value: (value, value, value, 1.0))

    def __init__(self, ends: tuple[float, float]) -> None:
        self.norm = lambda value: (value - ends[0]) / (ends[1] - ends[0])


class Panel:
    """Keeps the rows that are drawn, the cells' texts with their colours, and the names of both sides."""

    def __init__(self) -> None:
        self.cells: dict[tuple[int, int], tuple[str, str]] = {}
        self.names: dict[str, list[str]] = {}

    def imshow(self, rows: list[list[float]], **options: Any) -> Image:
        self.rows = rows
        return Image((options["vmin"], options["vmax"]))

    def text(self, x: int, y: int, shown: str, *, color: str, **_options: Any) -> None:
        self.cells[x, y] = (shown, color)

    def set_title(self, title: str) -> None:
        self.title = title

    def set_xticks(self, _places: range, names: list[str], **_options: Any) -> None:
        self.names["x"] = names

    def set_yticks(self, _places: range, names: list[str], **_options: Any) -> None:
        self.names["y"] = names


class Figure:
    """What `report` uses of matplotlib's Figure."""

    last: Figure

    def __init__(self, **_options: Any) -> None:
        Figure.last = self

    def subplots(self, _rows: int, columns: int, **_options: Any) -> list[list[Panel]]:
        self.panels = [Panel() for _ in range(columns)]
        return [self.panels]

    def colorbar(self, _image: Image, *, ax: Panel) -> None:
        assert ax in self.panels

    def savefig(self, path: Path) -> None:
        path.write_bytes(b"a picture")


def test_the_picture_has_a_cell_for_each_block_and_file(
    command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = ModuleType("matplotlib.figure")
    figure.Figure = Figure  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "matplotlib", ModuleType("matplotlib"))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", figure)
    result = command("report", PROMPT, "--loras", folder, "--picture", folder / "map.png")
    assert (result.status, result.err) == (0, "")
    assert result.out.splitlines()[-1] == str(folder / "map.png")
    norms, cosines = Figure.last.panels
    assert (norms.title, cosines.title) == ("‖Δ‖", "cosine")
    assert norms.names == {"x": ["ink", "wash", "oil", "together"], "y": ["BASE", "IN00", "IN01", "OUT03"]}
    assert cosines.names["x"] == ["ink\nwash", "ink\noil", "wash\noil"]
    dense = [changes(folder, name, strength)[TO_Q] for name, strength in STRENGTHS.items()]
    assert norms.rows[2] == pytest.approx([float(each.norm()) for each in (*dense, sum(dense))], rel=1e-9)
    assert norms.cells[0, 2][0] == f"{float(dense[0].norm()):.3g}"
    # White where it is dark: the least and the greatest of all.
    assert (norms.cells[1, 0], norms.cells[3, 2][1]) == (("0", "white"), "black")
    assert cosines.cells[0, 0] == ("–", "black")  # BASE, which wash has not


def test_matplotlib_writes_the_picture(command: Command, folder: Path) -> None:
    pytest.importorskip("matplotlib", reason="the picture is matplotlib's (extra: plot)")
    out = folder / "map.svg"
    assert command("report", PROMPT, "--loras", folder, "--picture", out).status == 0
    drawn = re.findall(r"<!-- (.*?) -->", out.read_text(encoding="utf-8"))
    assert {"BASE", "IN00", "IN01", "OUT03", "together", "cosine"} <= set(drawn)


def test_a_prompt_without_a_tag_has_nothing_to_report_of(command: Command, folder: Path) -> None:
    result = command("report", "a boat", "--loras", folder)
    assert (result.status, result.out) == (2, "")
    assert 'no LoRA named "a boat"' in result.err
