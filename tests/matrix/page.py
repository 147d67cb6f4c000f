"""docs/where-it-acts.md, made of measured cells."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
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


# In the last table: one pipeline of each build, so that the algorithms meet every state.
DEEP = ("SD 1", "Flux", "Wan 2.1")


def spots() -> list[Spot]:
    """Return all cells of the page."""
    first = [Spot(name, strength=strength) for name in RECORDS for strength in STRENGTHS]
    second = [
        Spot(name, state, strength)
        for name in RECORDS
        for state in STATES
        for strength in ("constant", "schedule")
        if state != "plain"
    ]
    third = [
        Spot(name, state, strength, algorithm)
        for name in DEEP
        for state in STATES
        for strength in ("constant", "schedule")
        for algorithm in ALGORITHMS
    ]
    return list(dict.fromkeys([*first, *second, *third]))


HEAD = """\
# Where a LoRA acts

Made by `python -m matrix --write` in `tests/`; a test measures a sample of it again.

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


def text(cells: Mapping[Spot, Cell]) -> str:
    """Return the page."""
    import diffusers

    notes: dict[str, int] = {}
    lines = [HEAD.format(version=diffusers.__version__.rpartition(".")[0], finest=FINEST)]
    lines += ["## Pipelines and kinds of strength", "", "A LoRA, in a pipeline to which nothing has been done.", ""]
    rows = {name: [_text(cells, Spot(name, strength=s), notes) for s in STRENGTHS] for name in RECORDS}
    lines += _table(["", *STRENGTHS], rows)
    others = [state for state in STATES if state != "plain"]
    for strength in ("constant", "schedule"):
        kind = "constant strength" if strength == "constant" else "strength that varies over the steps"
        lines += ["", f"## Pipelines and states, with a {kind}", ""]
        rows = {name: [_text(cells, Spot(name, state, strength), notes) for state in others] for name in RECORDS}
        lines += _table(["", *others], rows)
    for strength in ("constant", "schedule"):
        lines += ["", f"## States and algorithms ({strength})", ""]
        for name in DEEP:
            rows = {
                state: [_text(cells, Spot(name, state, strength, algorithm), notes) for algorithm in ALGORITHMS]
                for state in STATES
            }
            lines += [*_table([name, *ALGORITHMS], rows), ""]
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
