"""What a person has noted about a LoRA file: the `.json` beside it, and its `.txt`.

The keys are those that the WebUI's own editor writes, so the notes of years are found again, and so are those that
other tools have put into the same file.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_runtime.whole_files import read_plain

from ..whole import whole

__all__ = ["Sidecar", "beside", "find_description", "read", "sidecar_path", "write"]

_BROKEN_SUFFIX = ".broken"
_MOST_BYTES = 16 << 20  # of notes: other tools put examples into them too
_ON_WINDOWS = os.name == "nt"
_WAITS = (0.02, 0.1, 0.3)  # seconds that a scanner of viruses, or a tool that is reading, gets to close a file


@dataclass(frozen=True)
class Sidecar:
    """The notes on one file. `preferred_weight` is 0 where there is none; `rest` holds the keys of other tools.

    `problem` says what could not be read, in one line, or is "".
    """

    description: str = ""
    sd_version: str = ""
    activation_text: str = ""
    preferred_weight: float = 0.0
    negative_text: str = ""
    notes: str = ""
    rest: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""


_TEXT_KEYS = {
    "description": "description",
    "sd version": "sd_version",
    "activation text": "activation_text",
    "negative text": "negative_text",
    "notes": "notes",
}
_WEIGHT_KEY = "preferred weight"
# As the WebUI's editor writes them.
_ORDER = ("description", "sd version", "activation text", _WEIGHT_KEY, "negative text", "notes")


def sidecar_path(path: Path) -> Path:
    """Return where the notes on a LoRA file are kept."""
    return path.with_suffix(".json")


def read(path: Path) -> Sidecar:
    """Return the notes on the LoRA file `path`; never raises. Without a `.json` beside it they are empty."""
    source = sidecar_path(path)
    try:
        content = _content(source)
    except FileNotFoundError:
        return Sidecar()
    except OSError as error:
        return Sidecar(problem=f"{source.name} cannot be read: {error.strerror or error}")
    except (ValueError, RecursionError) as error:
        return Sidecar(problem=f"{source.name} is not valid: {_reason(error)}; it is kept aside when you save")
    return _from_content(content, source.name)


def write(path: Path, sidecar: Sidecar) -> None:
    """Write the notes on the LoRA file `path`, whole or not at all; raises OSError where that is impossible.

    Keys of other tools that are in the file by now are kept. A file that is no table of notes is moved aside first,
    under the same name with ".broken" behind it: somebody may have lost a comma in it, and no more.
    """
    target = sidecar_path(path)
    rest: Mapping[str, Any] = {}
    try:
        rest = _from_content(_content(target), target.name).rest
    except FileNotFoundError:
        pass
    except (ValueError, RecursionError):
        target.replace(target.with_name(target.name + _BROKEN_SUFFIX))
    values: dict[str, Any] = {key: getattr(sidecar, name) for key, name in _TEXT_KEYS.items()}
    values[_WEIGHT_KEY] = sidecar.preferred_weight
    content = {**{key: values[key] for key in _ORDER}, **sidecar.rest, **rest}
    _write_whole(target, json.dumps(content, indent=4, ensure_ascii=False))


def find_description(path: Path, names: Collection[str] | None = None) -> str:
    """Return the text of `ink.txt` or `ink.description.txt` beside the LoRA file `path`, or "".

    `names`, where given, are the files of the folder as listed before.
    """
    found = beside(path, [".txt", ".description.txt"], names)
    if found is None:
        return ""
    try:
        return read_plain(found, _MOST_BYTES).decode("utf-8-sig", "replace")
    except OSError:
        return ""


def beside(path: Path, endings: Iterable[str], names: Collection[str] | None) -> Path | None:
    """Return the first file that is called like `path` with one of these endings; `names` as in find_description."""
    for ending in endings:
        name = path.stem + ending
        if name in names if names is not None else path.with_name(name).is_file():
            return path.with_name(name)
    return None


def _content(source: Path) -> dict[str, Any]:
    """Return the table in the file; raises OSError or ValueError."""
    # Windows editors put a byte order mark before it.
    content = json.loads(read_plain(source, _MOST_BYTES).decode("utf-8-sig"))
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {_kind(content)} where a table of notes is expected")
    return content


def _from_content(content: dict[str, Any], name: str) -> Sidecar:
    problems = []
    values: dict[str, Any] = {}
    for key, attribute in _TEXT_KEYS.items():
        value = content.get(key)
        if isinstance(value, str):
            values[attribute] = whole(value)
        elif value is not None:
            problems.append(f'"{key}" is a {_kind(value)}, not a text')
    weight = content.get(_WEIGHT_KEY)
    if weight not in (None, ""):
        number = _number(weight)
        if number is None:
            problems.append(f'"{_WEIGHT_KEY}" is no number')
        else:
            values["preferred_weight"] = number
    rest = {key: value for key, value in content.items() if key not in _ORDER}
    return Sidecar(**values, rest=rest, problem=f"{name}: {', '.join(problems)}" if problems else "")


def _number(value: object) -> float | None:
    """Return a finite number; other tools write it as a text too."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if number - number == 0 else None


def _kind(value: object) -> str:
    kinds = {dict: "table", list: "list", str: "text", bool: "truth value", int: "number", float: "number"}
    return kinds.get(type(value), "null")


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"line {error.lineno}, column {error.colno}: {error.msg}"
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)


def _write_whole(target: Path, text: str) -> None:
    """Write beside the target and rename: who reads meanwhile finds the old file or the new one, never half of it."""
    # Half of a character, which some tool cut in two, stays the escape in JSON that it was.
    data = text.encode("utf-8", "backslashreplace")
    mode = target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~_umask()
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=".", suffix=".tmp")
    draft = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        if not _ON_WINDOWS:  # there a mode is no more than "read-only", which would keep the draft from its place
            with contextlib.suppress(OSError):  # some network folders have no modes
                # mkstemp makes it readable for its owner alone; notes are shared like the files beside them.
                draft.chmod(mode)
        _take_place(draft, target)
    finally:
        draft.unlink(missing_ok=True)


def _take_place(draft: Path, target: Path) -> None:
    """Rename the draft; wait a moment for a program that has the target open, which hinders only on Windows."""
    for seconds in _WAITS:
        try:
            draft.replace(target)
            return
        except PermissionError:
            time.sleep(seconds)
    draft.replace(target)


def _umask() -> int:
    """Return the umask; the system has no other way to ask for it than to set it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
