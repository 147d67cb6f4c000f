"""What reading a field's text may come to: a value, remarks beside it, or the reason why there is none."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lora_runtime.prompt.excerpt import quote
from lora_runtime.prompt.tags import Severity, Span

# Signs that keyboards and text programs put in the place of a minus, a point and a plus.
_SIGNS = str.maketrans(
    {**dict.fromkeys("−–—‐‑‒﹣－", "-"), **dict.fromkeys("．。·٫", "."), "＋": "+", "，": ",", "％": "%"}
)


class BadValueError(ValueError):
    """A field cannot be read: `.reason` completes a sentence that begins with the argument's noun; `.hint` may help.

    `.span` is the place in the field's text, None for all of it.
    """

    def __init__(self, reason: str, hint: str, span: Span | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint
        self.span = span


class Remark(NamedTuple):
    """Something to say about a part of a field that was read; the span is of the field's text."""

    severity: Severity
    span: Span
    message: str
    hint: str = ""


@dataclass(slots=True)
class Reading:
    """What is known while the fields of one tag are read: the presets, the values so far, and remarks on this field."""

    presets: Mapping[str, str]
    values: dict[str, Any] = field(default_factory=dict)
    remarks: list[Remark] = field(default_factory=list)
    used_x: bool = False


def parse_float(text: str) -> float | None:
    """Return what `float()` reads, nan and infinity included; None for anything else and for digit separators."""
    try:
        return None if "_" in text else float(text)
    except ValueError:
        return None


def read_number(text: str) -> float:
    """Return what `float()` reads, but neither nan nor infinity nor digit separators; raises BadValueError."""
    if not text.strip():
        raise BadValueError("is empty", 'write a number such as 0.7, or leave out the ":"')
    value = parse_float(text)
    if value is None:
        raise BadValueError(f"{quote(text)} is not a number", _number_hint(text))
    if not math.isfinite(value):
        raise BadValueError(f"{quote(text)} is not a finite number", "write a number such as 0.7")
    return value


def _number_hint(text: str) -> str:
    """Return what to do about `text`, which is not a number: the number that it comes near, if there is one."""
    text = text.strip()
    if text.count(",") > 1 and len(text) < 400 and all(parse_float(part) is not None for part in text.split(",")):
        return "block weights are 12, 17, 20, 26 or 61 numbers; keyframes are written as in 1@0,0@1"
    if len(text) > 60:
        return "write a number such as 0.7"
    percent = parse_float(text[:-1]) if text.endswith("%") else None
    if percent is not None and math.isfinite(percent):
        return f"write {percent / 100:.6g}"
    if text.startswith(("{", "$", "__")):
        return "an extension fills this in before the prompt is read here; write a number such as 0.7"
    plain = text.translate(_SIGNS)
    for near in (plain, plain.replace("_", ""), plain.replace(",", "."), plain.strip("()[]{}.,;'\"")):
        value = parse_float(near)
        if value is not None and math.isfinite(value):
            return f"write {near.strip()}"
    if (fraction := re.fullmatch(r"(\d{1,6})\s*[/÷]\s*([1-9]\d{0,5})", plain)) is not None:
        return f"write {int(fraction[1]) / int(fraction[2]):.6g}"
    number, *rest = re.split(r"\s", text, maxsplit=1)
    if rest and parse_float(number) is not None:
        return f'if the tag ends after {quote(number)}, write ">" there'
    return "write a number such as 0.7"
