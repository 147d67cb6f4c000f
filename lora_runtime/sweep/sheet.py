"""The contact sheet of a sweep: tags across, and down what else differs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_runtime.prompt import parse_prompt
from lora_runtime.sweep.rows import SweepError

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["cells_of", "write_sheet"]

_MOST = 2000  # places on one sheet
_TILE, _LEAST = 256, 96  # pixels: larger pictures are made smaller, smaller ones whole times larger
_LETTER, _WIDEST = 6, 288  # pixels of a letter of a title, and of the widest title
_SAID = {
    "model": "{}",
    "seed": "seed {}",
    "steps": "{} steps",
    "guidance_scale": "guidance {:g}",
    "negative": "without {}",
}

Line = Mapping[str, Any]


def cells_of(lines: Sequence[Line]) -> tuple[list[str], list[tuple[str, list[Line | None]]]]:
    """Return the titles of the columns, and for each row of the sheet its label and a line, or None, for each column.

    A column is what the tags say; a row is the prompt without them, with the model, seed, size, steps, guidance and
    negative prompt where these differ in the sweep. Lines that differ in neither stand in rows of their own.
    """
    differs = [name for name in (*_SAID, "width", "height") if len({str(line.get(name)) for line in lines}) > 1]
    titles: dict[str, None] = {}
    rows: dict[tuple[str, int], dict[str, Line]] = {}
    for line in lines:
        prompt = parse_prompt(line["prompt"])
        title = " + ".join(tag.raw[1:-1].partition(":")[2].replace(":", " ", 1) for tag in prompt.tags) or "no LoRA"
        said = [_SAID[name].format(line[name]) for name in differs if name in _SAID and line.get(name) is not None]
        if {"width", "height"} & {*differs}:
            said.append(f"{line.get('width')} × {line.get('height')}")
        label = ", ".join([" ".join(prompt.text.split()), *said])
        titles.setdefault(title)
        level = 0
        while title in rows.setdefault((label, level), {}):
            level += 1
        rows[label, level][title] = line
    return [*titles], [(label, [row.get(title) for title in titles]) for (label, _), row in rows.items()]


def write_sheet(lines: Sequence[Line], folder: Path, out: Path) -> bool:
    """Draw the pictures of these lines, which lie in `folder`; return whether there was any.

    SweepError where they are too many for one picture.
    """
    from PIL import Image

    from lora_runtime.train.charts import sheet

    titles, rows = cells_of(lines)
    if len(titles) * len(rows) > _MOST:
        raise SweepError(
            f"a sheet of {len(titles)} × {len(rows)} places: {_MOST} are the most; index.html has them all"
        )
    width = min(_WIDEST, max((_LETTER * len(title) for title in titles), default=0))

    def picture(line: Line | None) -> Image.Image | None:
        if line is None or not line.get("file"):
            return None
        with Image.open(folder / line["file"]) as opened:
            found = opened.convert("RGB")
        found.thumbnail((_TILE, _TILE))
        larger = max(1, _LEAST // found.width, -(-width // found.width))  # times, so that the titles have room
        return found.resize((larger * found.width, larger * found.height))

    drawn = [(label, [picture(line) for line in row]) for label, row in rows]
    there = [found.width for _, row in drawn for found in row if found is not None]
    if not there:
        return False
    most = max(there) // _LETTER
    made = sheet(drawn, [title if len(title) <= most else f"{title[: most - 1]}…" for title in titles])
    made.save(out)
    return True
