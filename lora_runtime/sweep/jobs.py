"""Files of rows: CSV, JSON lines, and TOML, which may have grids."""

from __future__ import annotations

import csv
import itertools
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_runtime.prompt import parse_prompt
from lora_runtime.prompt.variations import strengths, with_lora, with_strength
from lora_runtime.sets import Sets, read_sets, with_sets
from lora_runtime.sweep.rows import Row, SweepError, read_row

if TYPE_CHECKING:
    from lora_runtime.lookup import Loras

__all__ = ["grid_rows", "read_jobs"]

_AXES = ("models", "prompts", "loras", "strengths", "seeds")  # the last one changes fastest
_COLUMN = {"models": "model", "seeds": "seed"}  # axes that are columns; the others make the prompt
_RANGE = re.compile(r"\s*(\d{1,20})\s*-\s*(\d{1,20})\s*")
_MOST = 100_000  # rows of one grid: more is a typing error
_STRENGTH = 1.0  # of a LoRA that an axis adds and no number is given for


def read_jobs(path: str | os.PathLike[str], loras: Loras = None) -> list[Row]:
    """Return the rows of a file, by its suffix; raises SweepError for a file that cannot be read as a whole.

    .csv: the first line has the names of the columns. .jsonl: an object in each line. .toml: `[[rows]]` and `[[grid]]`,
    with what holds for all of them in `[defaults]`. UTF-8 all of them. `loras` is as for `grid_rows`.
    """
    path = Path(path)
    readers: dict[str, Callable[[str], Iterator[Row]]] = {
        ".csv": _csv,
        ".jsonl": _json_lines,
        ".toml": partial(_toml, loras=loras),
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise SweepError(f"{path}: rows are read from {', '.join(readers)}; give a file with such a name")
    try:
        text = path.read_bytes().decode("utf-8-sig")
        rows = list(reader(text))
    except (UnicodeDecodeError, csv.Error) as error:
        raise SweepError(f"{path}: cannot be read: {error}") from error
    except SweepError as error:
        raise SweepError(f"{path}: {error}") from error
    if not rows:
        raise SweepError(f"{path}: there is no row in it")
    return rows


def _csv(text: str) -> Iterator[Row]:
    return map(read_row, csv.DictReader(text.splitlines(keepends=True)))


def _json_lines(text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            given = json.loads(line)
        except (ValueError, RecursionError) as error:
            given, reason = None, str(error)
        else:
            reason = "it is no object"
        if isinstance(given, dict):
            yield read_row(given)
        else:
            fault = f"line {number} cannot be read: {reason}"
            yield Row(f"line-{number}", "", columns={"line": line[:200]}, fault=fault)


def _toml(text: str, loras: Loras) -> Iterator[Row]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SweepError(f"no TOML file: {error}") from error
    if strange := sorted(table.keys() - {"defaults", "rows", "grid"}):
        raise SweepError(f"has {', '.join(strange)}: known are [defaults], [[rows]] and [[grid]]")
    defaults = table.get("defaults", {})
    if not isinstance(defaults, dict):
        raise SweepError("defaults is no table: write [defaults]")
    for given in _tables(table, "rows"):
        yield read_row({**defaults, **given})
    for given in _tables(table, "grid"):
        yield from grid_rows({**defaults, **given}, loras)


def _tables(table: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    found = table.get(name, [])
    found = [found] if isinstance(found, dict) else found
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise SweepError(f"{name} is no table: write [[{name}]]")
    return found


def grid_rows(grid: Mapping[str, Any], loras: Loras = None) -> list[Row]:
    """Return a row for each combination of the axes; all else in `grid` is the same for all of them.

    `models`, `prompts`, `seeds` and `loras` are lists, seeds also "1-4"; `loras` puts each in the place of the prompt's
    first one, "None" takes that away. `strengths` is "ink: 0-1(+0.25)", "ink: 0.3, 0.6", or numbers alone for all
    LoRAs, as in the WebUI's XYZ plots. Those of a set in the prompt are LoRAs of it too; `loras`, as for `apply`, has
    the folders with the sets. SweepError for an axis that cannot be.
    """
    given = dict(grid)
    axes = {axis: _values(axis, given.pop(axis)) for axis in _AXES if axis in given}
    if not axes:
        raise SweepError(f"a grid without an axis: give it {', '.join(_AXES)}")
    if (size := math.prod(map(len, axes.values()))) > _MOST:
        raise SweepError(f"a grid of {size} rows: {_MOST} are the most; take fewer values, or several files")
    sets = cache(lambda: _sets_of(loras))
    rows = []
    for values in itertools.product(*axes.values()):
        at = dict(zip(axes, values, strict=True))
        cells = {**given, **{_COLUMN[axis]: at[axis] for axis in _COLUMN if axis in at}}
        if "name" in cells:  # one name for all of them would be none
            cells["name"] = "-".join([str(given["name"]), *map(str, values)])
        prompt = at.get("prompts", given.get("prompt"))
        try:
            cells["prompt"] = _prompt(prompt, at.get("loras"), at.get("strengths"), sets)
        except ValueError as error:
            raise SweepError(f"the grid of {prompt!r} cannot be made: {error}") from error
        meant = [at[axis] for axis in ("loras", "strengths") if axis in at]
        rows.append(read_row(cells, _left_of_sets(cells["prompt"], meant)))
    return rows


def _sets_of(loras: Loras) -> Mapping[str, str]:
    from lora_runtime.lookup import catalog_for  # which takes torch

    return read_sets(*catalog_for(loras).folders)


def _left_of_sets(prompt: Any, meant: Sequence[str]) -> str:
    """Return why values of axes cannot be those of a prompt's LoRAs: it has a set that was not found; "" where none."""
    if not meant or not isinstance(prompt, str):
        return ""
    left = [other.raw for other in parse_prompt(prompt).others if other.kind == "set"]
    reason = f"no such set, or its strength is none, so that {' and '.join(meant)} cannot be"
    return f"{', '.join(left)}: {reason}" if left else ""


def _prompt(prompt: Any, lora: str | None, strength: str | None, sets: Sets) -> Any:
    """Return the prompt with the LoRA and strength of this place in the grid."""
    if not isinstance(prompt, str) or (lora is None and strength is None):
        return prompt  # what is wrong with it the row says, and its sets are what they are when it is painted
    prompt = with_sets(prompt, sets)
    if lora is not None:
        prompt = with_lora(prompt, lora, _STRENGTH)
    if strength is not None:
        # A number alone says nothing of a prompt whose LoRA was taken away.
        prompt = with_strength(prompt, strength, lambda one, other: one == other)
    return prompt


def _values(axis: str, given: Any) -> list[Any]:
    """Return the values of an axis."""
    found = _read_axis(axis, given)
    if not found:
        raise SweepError(f"{axis} of a grid is {str(given)[:80]!r}: give at least one value")
    return list(dict.fromkeys(found))  # one that is there twice makes no second picture


def _read_axis(axis: str, given: Any) -> list[Any]:
    if axis == "strengths":
        text = given if isinstance(given, str) else ", ".join(map(str, given)) if isinstance(given, list) else ""
        try:
            return strengths(text)
        except ValueError as error:
            raise SweepError(f"strengths of a grid: {error}") from error
    if axis == "seeds" and isinstance(given, str) and (match := _RANGE.fullmatch(given)):
        first, last = int(match[1]), int(match[2])
        if last - first >= _MOST:
            raise SweepError(f"seeds of a grid are {given!r}: {_MOST} are the most")
        return list(range(first, last + 1))
    kind: type = int if axis == "seeds" else str
    if not isinstance(given, list) or not all(isinstance(each, kind) for each in given):
        raise SweepError(
            f"{axis} of a grid is {str(given)[:80]!r}: give a list of {'numbers' if kind is int else 'texts'}"
        )
    return given
