"""What may stand after the name in a `<lora:…>` tag, as data.

The parser reads the fields of a tag by this table and hands the values to LoraTag by name: a new argument is one entry
here and one field there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lora_runtime.prompt.excerpt import quote


class BadValueError(ValueError):
    """A field cannot be read: `.reason` completes a sentence that begins with the argument's noun; `.hint` may help."""

    def __init__(self, reason: str, hint: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of a tag.

    `by_position` says whether it may stand without its key; the order of those that may is that of the table. `read`
    turns the text of a field into the value and raises BadValueError. `default` gives the value of an argument that was
    left out, from the values of those above it in the table.
    """

    name: str
    by_position: bool
    noun: str
    read: Callable[[str], Any]
    default: Callable[[Mapping[str, Any]], Any]


def read_strength(text: str) -> float:
    """Return what `float()` reads, but neither nan nor infinity nor digit separators; raises BadValueError."""
    if not text.strip():
        raise BadValueError("is empty", 'write a number such as 0.7, or leave out the ":"')
    value = _number(text)
    if value is None:
        raise BadValueError(f"{quote(text)} is not a number", _strength_hint(text))
    if not math.isfinite(value):
        raise BadValueError(f"{quote(text)} is not a finite number", "write a number such as 0.7")
    return value


def read_rank(text: str) -> int:
    """Return what `int()` reads, but no digit separators; raises BadValueError."""
    if not text.strip():
        raise BadValueError("is empty", 'write a whole number such as 8, or leave out the ":"')
    try:
        if "_" not in text:
            return int(text)
    except ValueError:
        pass
    near = _number(text.replace("_", ""))
    hint = "write a whole number such as 8"
    if near is not None and near.is_integer() and abs(near) < 1e6:
        hint = f"write {near:.0f}"
    raise BadValueError(f"{quote(text)} is not a whole number", hint)


ARGUMENTS = (
    Argument("te", True, "strength", read_strength, lambda _: 1.0),
    Argument("unet", True, "unet strength", read_strength, lambda given: given["te"]),
    Argument("dyn", True, "rank", read_rank, lambda _: None),
)
BY_NAME = {argument.name: argument for argument in ARGUMENTS}
BY_POSITION = tuple(argument for argument in ARGUMENTS if argument.by_position)


def _number(text: str) -> float | None:
    """Return what `float()` reads, nan and infinity included; None for anything else and for digit separators."""
    try:
        return None if "_" in text else float(text)
    except ValueError:
        return None


def _strength_hint(text: str) -> str:
    """Return what to do about `text`, which is not a number: the number that it comes near, if there is one."""
    text = text.strip()
    if len(text) > 60:
        return "write a number such as 0.7"
    percent = _number(text[:-1]) if text.endswith("%") else None
    if percent is not None and math.isfinite(percent):
        return f"write {percent / 100!r}"
    for near in (text.replace("_", ""), text.replace(",", "."), text.rstrip(")]}.,;'\"")):
        value = _number(near)
        if value is not None and math.isfinite(value):
            return f"write {near.strip()}"
    number, *rest = re.split(r"\s", text, maxsplit=1)
    if rest and _number(number) is not None:
        return f'if the tag ends after {quote(number)}, write ">" there'
    return "write a number such as 0.7"
