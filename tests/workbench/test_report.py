"""`report`: what several files do together, against dense matrices in float64, and its advice put to the test."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import Command
from torch import Tensor
from workbench.files import CONV_IN, SHAPES, TEXT, TO_K, TO_Q, delta, factors, written

from lora_runtime.errors import LoraFileError
from lora_runtime.lora import load_lora
from lora_runtime.workbench import Reported, balanced, compare, heat_map, report

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


def test_modules_that_fight_are_counted_one_by_one(folder: Path) -> None:
    tensors = factors(TO_Q, 4) | factors(TO_K, 2) | factors(CONV_IN, 3)
    against = dict(tensors)
    for key in against:
        if key.startswith(TO_Q) and "up" in key:
            against[key] = -against[key]
    written(folder / "one.safetensors", tensors)
    written(folder / "two.safetensors", against)
    found = report(["<lora:one:1> <lora:two:1>"], loras=[folder])
    [pair] = found.total.pairs
    assert (pair.modules, pair.fighting) == (3, 1)
    assert [block.pairs[0].fighting for block in found.blocks.values()] == [0, 1, 0]


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


def test_what_of_the_tags_means_nothing_is_said(folder: Path) -> None:
    prompt = "<lora:ink:0.7:foo=3:D00=0:hr=0.1> <lora:wash:-0.4>"
    said = report([prompt], loras=[folder]).suggestions
    assert [each for each in said if each.startswith(('there is no argument "foo="', '"ink"'))] == [*said[:3]]
    assert compare("<lora:ink:1:foo=3>", "<lora:oil:1>", loras=[folder]).suggestions[0].startswith("there is no arg")
    with pytest.raises(LoraFileError, match="depends on the step, the image or the place"):
        report(["<lora:ink:1:box=0,0,0.5,1>"], loras=[folder])


def test_it_takes_no_longer_than_it_may(folder: Path) -> None:
    with pytest.raises(TimeoutError, match=r"4 modules of 3 files take longer than 0 s"):
        report([PROMPT], loras=[folder], seconds=0)


def test_the_command_prints_tables_and_the_balanced_prompt(command: Command, folder: Path) -> None:
    result = command("report", PROMPT, "--loras", folder)
    assert (result.status, result.err) == (0, "")
    lines = result.out.splitlines()
    assert lines[0] == "1: ink, 2: wash, 3: oil"
    assert lines[1].split() == ["block", "‖Δ1‖", "‖Δ2‖", "‖Δ3‖", "together", "rank", "1", "rank", "2", "rank", "3"]
    assert [line.split()[0] for line in lines[2:7]] == ["BASE", "IN00", "IN01", "OUT03", "all"]
    assert [line for line in lines if " and " in line][:3] == ["ink and wash", "ink and oil", "wash and oil"]
    assert lines[-1].strip() == balanced(PROMPT, loras=[folder])
    assert json.loads(command("report", PROMPT, "--loras", folder, "--json").out)["names"] == ["ink", "wash", "oil"]
    wrong = command("report", PROMPT, "--loras", folder, "--picture", folder / "map.txt")
    assert (wrong.status, "--picture" in wrong.err) == (2, True)


def panels_of(found: Reported) -> list[Any]:
    """Return what is drawn, without the scales of colours: matplotlib's Axes."""
    figure = heat_map(found)
    figure.canvas.draw()  # as a file would have it
    return [axes for axes in figure.axes if axes.get_title()]


def drawn_at(axes: Any) -> dict[tuple[int, int], Any]:
    """Return the texts of the cells by their places."""
    return {(round(text.get_position()[0]), round(text.get_position()[1])): text for text in axes.texts}


def test_the_picture_has_a_cell_for_each_block_and_file(folder: Path) -> None:
    norms, cosines = panels_of(report([PROMPT], loras=[folder]))
    assert (norms.get_title(), cosines.get_title()) == ("‖Δ‖", "cosine")
    assert [label.get_text() for label in norms.get_xticklabels()] == ["ink", "wash", "oil", "together"]
    assert [label.get_text() for label in norms.get_yticklabels()] == ["BASE", "IN00", "IN01", "OUT03"]
    assert [label.get_text() for label in cosines.get_xticklabels()] == ["ink\nwash", "ink\noil", "wash\noil"]
    dense = [changes(folder, name, strength)[TO_Q] for name, strength in STRENGTHS.items()]
    expected = [float(each.norm()) for each in (*dense, sum(dense))]
    assert norms.images[0].get_array()[2].tolist() == pytest.approx(expected, rel=1e-9)
    assert drawn_at(norms)[0, 2].get_text() == f"{expected[0]:.3g}"
    ink, wash = dense[:2]
    assert drawn_at(cosines)[0, 2].get_text() == f"{float((ink * wash).sum() / ink.norm() / wash.norm()):+.2f}"
    assert drawn_at(cosines)[0, 0].get_text() == "–"  # BASE, which wash has not


def test_numbers_in_the_picture_can_be_read_on_their_colour(folder: Path) -> None:
    from matplotlib.colors import to_rgb

    for axes in panels_of(report([PROMPT], loras=[folder])):
        (image,) = axes.images
        for (x, y), text in drawn_at(axes).items():
            value = image.get_array().filled(math.nan)[y][x]
            if math.isnan(value):
                continue
            # WCAG 2 asks for a contrast of 4.5.
            light, dark = sorted((luminance(image.cmap(image.norm(value))), luminance(to_rgb(text.get_color()))))[::-1]
            assert (light + 0.05) / (dark + 0.05) > 4.5, (axes.get_title(), value)


def luminance(colour: Sequence[float]) -> float:
    """Return the relative luminance of sRGB, as WCAG 2 defines it."""
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3])
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_the_command_writes_the_picture(command: Command, folder: Path, ending: str) -> None:
    out = folder / f"map.{ending}"
    result = command("report", PROMPT, "--loras", folder, "--picture", out)
    assert (result.status, result.err) == (0, "")
    assert result.out.splitlines()[-1] == str(out)
    assert out.read_bytes().startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[ending])
    if ending == "svg":
        drawn = re.findall(r"<!-- (.*?) -->", out.read_text(encoding="utf-8"))
        assert {"BASE", "IN00", "IN01", "OUT03", "together", "cosine"} <= set(drawn)


def test_a_name_with_a_dollar_is_drawn_as_it_is(folder: Path) -> None:
    written(folder / "a$b$.safetensors", FILES["ink"])
    axes, *_ = panels_of(report(["<lora:a$b$:1><lora:wash:1>"], loras=[folder]))
    assert axes.get_xticklabels()[0].get_text() == r"a\$b\$"


def test_a_prompt_without_a_tag_has_nothing_to_report_of(command: Command, folder: Path) -> None:
    result = command("report", "a boat", "--loras", folder)
    assert (result.status, result.out) == (2, "")
    assert 'no LoRA named "a boat"' in result.err
