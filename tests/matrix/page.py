"""docs/where-it-acts.md, made of measured cells."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import NamedTuple

from matrix.cell import Cell
from matrix.files import ALGORITHMS
from matrix.pipelines import RECORDS
from matrix.states import STATES
from matrix.strengths import STRENGTHS

FINEST = 1e-4  # below this the digits are those of the machine's float32


class Spot(NamedTuple):
    """Which cell."""

    pipeline: str
    state: str = "plain"
    strength: str = "constant"
    algorithm: str = "LoRA"


# One pipeline of each build: two UNets, pictures by transformers of three kinds, films, and one with two experts.
BUILDS = ("SD 1", "SDXL", "SD3", "Flux", "Qwen-Image", "LTX", "Wan 2.2")
# Where all algorithms meet all states: a model whose attention can be fused, and whose layers can all be quantised.
DEEP = "Flux"
BY_STATE = ("constant", "schedule")  # strengths that go into the weights, and that act beside them


def spots() -> list[Spot]:
    """Return the cells of the page."""
    first = [Spot(name, strength=strength) for name in RECORDS for strength in STRENGTHS]
    second = [Spot(name, state, strength) for name in BUILDS for state in STATES for strength in BY_STATE]
    third = [
        Spot(DEEP, state, strength, algorithm) for state in STATES for strength in BY_STATE for algorithm in ALGORITHMS
    ]
    return list(dict.fromkeys([*first, *second, *third]))


def everything() -> list[Spot]:
    """Return all cells that can be measured, on the page or not."""
    return [Spot(*spot) for spot in product(RECORDS, STATES, STRENGTHS, ALGORITHMS)]


HEAD = """\
# Where a LoRA acts

Made by `make matrix ARGS=--write`; a test measures a sample of it again. On the page are all pipelines with all kinds
of strength, one pipeline of each build in all states, and all algorithms in all states of one of them: some minutes
of two cores. `make matrix` measures any other cell too: `ARGS="--only 'Wan VACE' --state 'layerwise fp8'"`.

Each cell is a picture that a tiny pipeline of diffusers {version} paints by its own `__call__`, with random weights
and a LoRA in its prompt, held against the same picture by a judge: a plain pipeline whose denoiser runs with W₀ + sΔ,
computed in float64 by the formula of the algorithm. The judge knows nothing of this library. Whose a row of the batch
is, the text in it says; which step it is, the time step.

- **equal**: the same picture. The number is the largest difference, in parts of the LoRA's own effect, rounded up to
  a power of ten; without a number it is below {finest:g}. In brackets: what of the file is refused, with its reason.
- **refused**: the picture is that without a LoRA, the report does not count the file as used, and a diagnostic has
  the reason.
- –: there is no such thing. The notes say why.

After each picture the LoRA is taken back and the pipeline paints once more: it is the picture without it.
"""


KINDS = {"constant": "at a constant strength", "schedule": "at a strength that varies over the steps"}


def text(cells: Mapping[Spot, Cell]) -> str:
    """Return the page."""
    import diffusers

    notes: dict[str, int] = {}
    lines = [HEAD.format(version=diffusers.__version__.rpartition(".")[0], finest=FINEST)]
    lines += ["## Pipelines and kinds of strength", "", "A LoRA, in a pipeline to which nothing has been done.", ""]
    rows = {name: [_text(cells, Spot(name, strength=s), notes) for s in STRENGTHS] for name in RECORDS}
    lines += _table(["", *STRENGTHS], rows)
    others = [state for state in STATES if state != "plain"]
    for strength in BY_STATE:
        lines += ["", f"## Pipelines and states, {KINDS[strength]}", ""]
        rows = {name: [_text(cells, Spot(name, state, strength), notes) for state in others] for name in BUILDS}
        lines += _table(["", *others], rows)
    for strength in BY_STATE:
        lines += ["", f"## {DEEP}: states and algorithms, {KINDS[strength]}", ""]
        rows = {
            state: [_text(cells, Spot(DEEP, state, strength, algorithm), notes) for algorithm in ALGORITHMS]
            for state in STATES
        }
        lines += _table(["", *ALGORITHMS], rows)
    if notes:
        lines += ["", "## Notes", "", *(f"{number}. {note}" for note, number in notes.items())]
    return "\n".join(lines).rstrip() + "\n"


def word(cell: Cell) -> str:
    """Return what a cell says, without its reason."""
    if cell.kind == "none":
        return "–"
    if cell.kind == "wrong":
        return f"**WRONG** {cell.error:.2g}"
    if cell.kind == "refused" or cell.error < FINEST:
        return cell.kind
    return f"equal {10.0 ** math.ceil(math.log10(cell.error)):.0e}"


def _text(cells: Mapping[Spot, Cell], spot: Spot, notes: dict[str, int]) -> str:
    cell = cells.get(spot)
    if cell is None:
        return "not measured"
    if not cell.reason:
        return word(cell)
    return f"{word(cell)} ({notes.setdefault(cell.reason, len(notes) + 1)})"


def _table(head: Sequence[str], rows: Mapping[str, Iterable[str]]) -> list[str]:
    return [
        f"| {' | '.join(head)} |".replace("|  |", "| |", 1),
        "|" + "---|" * len(head),
        *(f"| {name} | {' | '.join(row)} |" for name, row in rows.items()),
    ]
