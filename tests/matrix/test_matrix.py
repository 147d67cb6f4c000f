"""A sample of the matrix, measured again: no cell is wrong, and docs/where-it-acts.md says what is measured."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from matrix.cell import measure
from matrix.page import KINDS, STRENGTHS, Spot, spots, word
from matrix.pipelines import RECORDS
from matrix.states import STATES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "where-it-acts.md"

SAMPLE = [
    *(Spot(name, strength=strength) for name in ("Flux", "Z-Image", "Wan 2.2") for strength in STRENGTHS),
    Spot("SD 1 PAG", strength="per image"),
    Spot("SD 1 PAG", strength="negative side"),
    Spot("SD 1 PAG without guidance", strength="per image"),
    Spot("PRX", strength="schedule"),
    Spot("Cascade's prior", strength="schedule"),
    Spot("LTX-2", strength="region"),
    *(Spot("Flux", state) for state in STATES if not state.startswith("compiled")),
    Spot("Flux", "fused qkv", "schedule", "DoRA"),
    Spot("LTX", "fused qkv"),
    *(Spot("SD 1", state) for state in ("fused qkv", "group offload, stream", "layerwise fp8")),
    *(Spot("Flux", "layerwise fp8", "schedule", algorithm) for algorithm in ("LoHa", "DoRA", "OFT")),
]


@pytest.mark.quick(18)
@pytest.mark.parametrize("spot", SAMPLE, ids=", ".join)
@pytest.mark.filterwarnings("ignore")
def test_a_lora_acts_to_the_figure_or_is_refused(spot: Spot) -> None:
    cell = measure(RECORDS[spot.pipeline], *spot[1:])
    assert cell.kind != "wrong", cell.detail
    if cell.reason.endswith("is not installed"):
        pytest.skip(cell.reason)
    assert _on_the_page(spot) == word(cell), cell.detail


def test_every_pipeline_and_every_state_is_on_the_page() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert "not measured" not in page
    assert "WRONG" not in page
    assert {spot.pipeline for spot in spots()} == set(RECORDS)
    assert all(f"| {name} |" in page for name in (*RECORDS, *STATES))


def _on_the_page(spot: Spot) -> str:
    """Return what the page says, without the number of the note."""
    title, row, column = _place(spot)
    part = PAGE.read_text(encoding="utf-8").partition(title + "\n")[2]
    head, line = "", ""
    for text in part.splitlines():
        if text.startswith("## "):
            break
        if text.startswith("| |") and f"| {column} |" in text:
            head = text
        elif text.startswith(f"| {row} |") and head:
            line = text
            break
    found = dict(zip(_fields(head), _fields(line), strict=True))[column]
    return re.sub(r" \(\d+\)$", "", found)


def _place(spot: Spot) -> tuple[str, str, str]:
    """Return the heading, the row and the column in which the page has a cell."""
    if spot.algorithm != "LoRA":
        return f"## {spot.pipeline}: states and algorithms, {KINDS[spot.strength]}", spot.state, spot.algorithm
    if spot.state == "plain":
        return "## Pipelines and kinds of strength", spot.pipeline, spot.strength
    return f"## Pipelines and states, {KINDS[spot.strength]}", spot.pipeline, spot.state


def _fields(line: str) -> list[str]:
    return [field.strip() for field in line.strip("|").split("|")]
