"""What the panel is told of LoRAs that get in each other's way: the figures of `report`, found once for the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from workbench.files import TEXT, TO_K, TO_Q, factors, written

from lora_runtime import LoraCatalog
from lora_runtime.workbench import conflicts as conflicts_module
from lora_runtime.workbench import report
from lora_runtime.workbench.conflicts import MOST_FILES, Conflicts


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    written(tmp_path / "ink.safetensors", factors(TO_Q, 4) | factors(TO_K, 2))
    written(tmp_path / "wash.safetensors", factors(TO_Q, 2, seed=7))
    written(tmp_path / "oil.safetensors", factors(TO_K, 1, seed=12))
    written(tmp_path / "text.safetensors", factors(TEXT, 2, seed=5))
    return tmp_path


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return how many files each report was of, in order."""
    seen: list[int] = []

    def counted(requests: Any, **how: Any) -> Any:
        seen.append(len(requests))
        return report(requests, **how)

    monkeypatch.setattr(conflicts_module, "report", counted)
    return seen


def test_each_two_have_a_line_and_the_map_has_the_figures_of_the_report(folder: Path) -> None:
    prompt = "<lora:ink:1> <lora:ink:-0.5> <lora:wash:1> <lora:text:1>"
    found = Conflicts(LoraCatalog(folder))(prompt)
    json.dumps(found, allow_nan=False)
    said = {tuple(pair["names"]): (pair["layers"], pair["fighting"]) for pair in found["pairs"]}
    assert said["ink", "ink"] == (2, 2)
    assert said["wash", "text"] == (0, 0)
    assert next(pair["cosine"] for pair in found["pairs"]) == -1
    known = report([prompt], loras=[folder])
    assert [row["block"] for row in found["map"]["rows"]] == list(known.blocks)
    assert found["map"]["columns"][:4] == ["ink", "ink", "wash", "text"]
    highest = max(norm for block in known.blocks.values() for norm in block.norms)
    for row in found["map"]["rows"]:
        block = known.blocks[row["block"]]
        norms, cosines = row["cells"][:4], row["cells"][4:]
        for cell, norm, count in zip(norms, block.norms, block.modules, strict=True):
            assert cell["value"] == (pytest.approx(norm / highest, abs=1e-4) if count else None)
        for cell, pair in zip(cosines, block.pairs, strict=True):
            assert cell["value"] == (None if pair.cosine is None else pytest.approx(pair.cosine, abs=1e-4))


def test_the_same_files_at_the_same_strengths_are_looked_at_once(folder: Path, reports: list[int]) -> None:
    conflicts = Conflicts(LoraCatalog(folder))
    first = conflicts("<lora:ink:1> <lora:wash:1>")
    assert conflicts("a boat <lora:ink:1> and <lora:wash:1>") == first
    assert reports == [2]
    conflicts("<lora:ink:1> <lora:wash:0.5>")
    assert reports == [2, 2]
    written(folder / "wash.safetensors", factors(TO_Q, 3, seed=8))  # another content under the old name
    assert conflicts("<lora:ink:1> <lora:wash:1>") != first
    assert reports == [2, 2, 2]


def test_what_cannot_be_in_it_costs_itself_and_is_said(folder: Path) -> None:
    no_number = "<lora:ink:1@0,0@1> <lora:ink:1:stop=5>"
    found = Conflicts(LoraCatalog(folder))(
        f"<lora:nobody:1> {no_number} <lora:ink:1> <lora:ink:2> <lora:wash:1> <lora:oil:1>"
    )
    assert [pair["names"] for pair in found["pairs"]] == [["ink", "ink"], ["ink", "wash"], ["ink", "wash"]]
    said = found["said"]
    assert [each.partition(" is left out: ")[0] for each in said[:4]] == ["nobody", "ink", "ink", "oil"]
    assert ["depends on the step" in each for each in said[:3]] == [False, True, True]
    assert "no module by the names" in said[3]


def test_of_fewer_than_two_there_is_nothing_to_tell(folder: Path, reports: list[int]) -> None:
    assert Conflicts(LoraCatalog(folder))("<lora:ink:1> words") == {"pairs": [], "map": None, "said": []}
    assert reports == []


def test_of_many_the_first_are_looked_at(folder: Path, reports: list[int]) -> None:
    found = Conflicts(LoraCatalog(folder))("".join(f"<lora:ink:{n}>" for n in range(1, 30)))
    assert reports == [MOST_FILES]
    assert found["said"][0] == f"only the first {MOST_FILES} LoRAs are looked at"


def test_block_weights_by_name_are_those_of_the_page(folder: Path) -> None:
    """TO_Q is in IN01, so that a preset without it leaves nothing of `wash`."""
    prompt = "<lora:ink:1> <lora:wash:1:lbw=QUIET>"
    found = Conflicts(LoraCatalog(folder), lambda: {"QUIET": "1,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0"})(prompt)
    assert [pair["layers"] for pair in found["pairs"]] == [0]
    assert [pair["layers"] for pair in Conflicts(LoraCatalog(folder))(prompt)["pairs"]] == [1]


def test_of_a_pair_each_file_meets_those_for_the_same_denoiser(tmp_path: Path) -> None:
    key = "diffusion_model.blocks.0.attn1.to_q"
    for name, high, low in (("ink", 1.0, 1.0), ("oil", 1.0, -1.0)):
        for noise, value in (("high", high), ("low", low)):
            tensors = {f"{key}.lora_A.weight": torch.full((1, 4), value), f"{key}.lora_B.weight": torch.ones(4, 1)}
            metadata = {"modelspec.architecture": "wan2.2-t2v-a14b/lora"}
            written(tmp_path / f"{name}_{noise}_noise.safetensors", tensors, metadata)
    found = Conflicts(LoraCatalog(tmp_path))("<lora:ink:1> <lora:oil:1>")
    pairs = {tuple(pair["names"]): (pair["layers"], pair["cosine"]) for pair in found["pairs"]}
    assert pairs == {
        ("ink_high_noise", "oil_high_noise"): (1, 1.0),
        ("ink_low_noise", "oil_low_noise"): (1, -1.0),
    }
    [row] = found["map"]["rows"]
    assert len(row["cells"]) == len(found["map"]["columns"]) == 6
    assert "left out" not in " ".join(found["said"])


def test_one_file_of_a_folder_is_left_out(folder: Path) -> None:
    found = Conflicts(LoraCatalog(folder))("<lora:ink:1> <lora:styles/*:1> <lora:wash:1>")
    assert found["said"][0] == "styles/* is left out: it is one file of a folder, drawn by the seed of each picture"
    assert [pair["names"] for pair in found["pairs"]] == [["ink", "wash"]]


def test_files_of_zeros_make_no_change(folder: Path) -> None:
    for name in ("blank", "empty"):
        written(folder / f"{name}.safetensors", {key: value * 0 for key, value in factors(TO_Q, 2).items()})
    for prompt, still in (
        ("<lora:blank:1> <lora:empty:1>", ("blank", "empty")),
        ("<lora:ink:1> <lora:blank:1>", ("blank",)),
    ):
        found = Conflicts(LoraCatalog(folder))(prompt)
        json.dumps(found, allow_nan=False)
        assert [(pair["layers"], pair["cosine"]) for pair in found["pairs"]] == [(1, None)]
        assert [text for text in found["said"] if "no change" in text] == [
            f"{name} makes no change: all of it is 0" for name in still
        ]
