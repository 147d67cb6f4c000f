"""A row: one picture to be painted, what it is called, and what is wrong with it where it cannot be painted."""

from __future__ import annotations

import hashlib
import json
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from lora_runtime.errors import LoraError
from lora_runtime.prompt import LoraTag, parse_prompt

__all__ = ["Row", "SweepError", "checked_rows", "read_row"]

_OTHER_NAMES = {"negative_prompt": "negative", "num_inference_steps": "steps"}
_MOST_STEPS = 10_000
_SEEDS = 1 << 64  # what a generator of torch takes
_UNSAFE = re.compile(r"[^\w.-]+")
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # no names of files on Windows
_LONGEST_NAME = 80  # bytes
_DIGITS = 12


class SweepError(LoraError):
    """A sweep cannot begin as it is asked for; what is wrong with one row alone costs only that row."""


@dataclass(frozen=True)
class Row:
    """A picture to be painted; None leaves a value to the pipeline.

    `key` is the name of its file without the suffix. `columns` are those that have no meaning here, kept for the
    manifest, and cells that cannot be read, as they were given. `fault` says why it cannot be painted, "" where it can.
    """

    key: str
    prompt: str
    negative: str = ""
    seed: int = 0
    width: int | None = None  # pixels
    height: int | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    fault: str = ""
    model: str = ""  # the name of one of several

    @cached_property
    def tags(self) -> tuple[LoraTag, ...]:
        """The tags of the prompt."""
        return parse_prompt(self.prompt).tags

    @property
    def shape(self) -> tuple[Any, ...]:
        """What a call of a pipeline has one of; a negative prompt is given to all or to none."""
        values = (self.width, self.height, self.steps, self.guidance_scale)
        return (self.model, *((value is not None, value or 0) for value in values), bool(self.negative))

    @cached_property
    def digest(self) -> str:
        """The SHA-256, as hex digits, of all that the row says but its name."""
        said = [self.prompt, self.negative, self.seed, self.width, self.height, self.steps, self.guidance_scale]
        said += [["model", self.model]] if self.model else []
        said += [["fault", self.fault]] if self.fault else []  # else it would pass for the row that its defaults make
        text = json.dumps([*said, sorted(self.columns.items())], default=str)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def read_row(given: Mapping[str, Any], fault: str = "") -> Row:
    """Return the row that the columns say; an empty cell is as none. What cannot be is its fault.

    `name` becomes the key, safe as the name of a file; without one the key is of the content, and so always the same.
    `fault` is one that is known already.
    """
    cells = {_OTHER_NAMES.get(name, name): value for name, value in given.items() if value not in (None, "")}
    name = str(cells.pop("name", ""))
    read: dict[str, Any] = {}
    for column, reader in _READERS.items():
        if column in cells:
            try:
                read[column] = reader(cells[column])
            except ValueError as error:
                fault = fault or f"{column} is {str(cells[column])[:80]!r}: {error}"
            else:
                del cells[column]
    if not fault and "prompt" not in read:
        fault = "it has no prompt: give the column `prompt`"
    if not fault and None in cells:
        fault = f"it has more cells than there are columns: {str(cells[None])[:80]}"  # type: ignore[index]
    columns = {"" if column is None else str(column): value for column, value in cells.items()}
    row = Row("", **{"prompt": "", **read}, columns=columns, fault=fault)
    return replace(row, key=_safe(name) if name else row.digest[:_DIGITS])


def checked_rows(given: Iterable[Row | Mapping[str, Any]]) -> tuple[list[Row], list[str]]:
    """Return the rows, each with a key that no other has, and what there is to say of that.

    A row that is there twice is painted once. Of two different rows with one name the second gets digits of its content
    behind it.
    """
    rows: dict[str, Row] = {}
    again, renamed = 0, []
    for each in given:
        row = each if isinstance(each, Row) else read_row(each)
        place = row.key.casefold()  # some file systems do not tell the two apart
        if place in rows and rows[place].digest != row.digest:
            row = replace(row, key=f"{row.key}-{row.digest[:_DIGITS]}")
            place = row.key.casefold()
            renamed.append(row.key)
        again += place in rows
        rows.setdefault(place, row)
    notes = []
    if again:
        notes.append(f"{again} {'row says' if again == 1 else 'rows say'} the same as another: painted once")
    if renamed:
        more = f" and {len(renamed) - 3} more" if len(renamed) > 3 else ""
        notes.append(f"names that several rows have: {', '.join(renamed[:3])}{more} got digits of their content")
    return list(rows.values()), notes


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("give a text")
    if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ValueError("it has half of a character, or a NUL, in it")  # which tokenizers and PNGs do not take
    return value


def _whole(least: int, most: int) -> Any:
    def read(value: Any) -> int:
        if isinstance(value, str) and re.fullmatch(r"\s*-?\d{1,20}\s*", value):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValueError(f"give a whole number from {least} to {most}")
        return value

    return read


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError("give a number")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise ValueError("give a number") from None
    if not math.isfinite(number):
        raise ValueError("give a finite number")
    return number


_READERS = {
    "prompt": _text,
    "negative": _text,
    "seed": _whole(0, _SEEDS - 1),
    "width": _whole(1, 1 << 16),
    "height": _whole(1, 1 << 16),
    "steps": _whole(1, _MOST_STEPS),
    "guidance_scale": _number,
    "model": _text,
}


def _safe(name: str) -> str:
    """Return a name as that of a file; one that had to be changed gets digits of the name as it was."""
    plain = unicodedata.normalize("NFC", name)
    safe = _UNSAFE.sub("-", plain).strip(".-")
    safe = safe.encode("utf-8", "ignore")[:_LONGEST_NAME].decode("utf-8", "ignore")
    if safe == plain and not _DEVICES.fullmatch(safe):
        return safe
    digits = hashlib.sha256(plain.encode("utf-8", "surrogatepass")).hexdigest()[:6]
    return f"row-{safe}-{digits}" if _DEVICES.fullmatch(safe) else f"{safe or 'row'}-{digits}"
