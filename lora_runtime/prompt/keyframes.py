"""Strengths as people write them: a number, or keyframes such as 0.2@0,1@0.5,0@1.

The keyframes are those of sd-webui-loractl, with its rule for positions without a unit: all are fractions of the run
if the greatest is at most 1, and steps otherwise. Positions may have a unit: 50%, 10s, 7.5sigma. In brackets,
[0.2@0,1@0.5], they are those of Forge Neo's own LoRA Control (September 2026): shares of the steps that are done.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from lora_runtime.prompt.excerpt import quote
from lora_runtime.prompt.strength import Curve, Key, Position, Strength, Unit
from lora_runtime.prompt.tags import Span
from lora_runtime.prompt.values import BadValueError, Reading, Remark, parse_float, read_number

__all__ = ["MOST_KEYS", "in_brackets", "read_position", "read_strength"]

MOST_KEYS = 1000

_AT = re.compile("[@~]")
_UNITS: tuple[tuple[str, Unit], ...] = (("%", "fraction"), ("sigma", "sigma"), ("s", "step"))
_POSITION_HINT = "write a fraction such as 0.5 or 50%, a step such as 10s, or a noise level such as 7.5sigma"


def in_brackets(text: str) -> bool:
    """Return whether a text was meant as keyframes in brackets."""
    return text.strip().startswith("[") and _AT.search(text) is not None


class _Item(NamedTuple):
    """A keyframe as written; a position without a unit has None for it until all are known."""

    value: float
    place: float
    unit: Unit | None
    span: Span


def read_strength(text: str, reading: Reading) -> Strength:
    """Return a number, or the curve through keyframes; raises BadValueError.

    Keyframes out of order are put in order; of several at one position the first is where the curve comes to and the
    last where it goes on from. A single keyframe is a number.
    """
    if _AT.search(text) is None:
        return read_number(text)
    brackets = in_brackets(text)
    if brackets:
        text = _inside(text)
    spans = _spans(text)
    if len(spans) > MOST_KEYS:
        raise BadValueError(f"has {len(spans)} keyframes", f"a strength may have up to {MOST_KEYS}")
    items = [_item(text, span, index, reading) for index, span in enumerate(spans)]
    items = _as_shares(items, text, reading) if brackets else _with_units(items, reading)
    keys = tuple(Key(item.value, Position(item.place, item.unit or "step")) for item in _in_order(items, reading))
    return keys[0].value if len(keys) == 1 else Curve(keys)


def read_position(text: str) -> tuple[float, Unit | None]:
    """Return the number of a position, and its unit if it has one; raises BadValueError."""
    written = text.strip()
    suffix, unit = next((pair for pair in _UNITS if written.endswith(pair[0])), ("", None))
    digits = written.removesuffix(suffix).strip()
    # Of 33.3% the decimal point is moved, since a division by 100 rounds.
    value = parse_float(f"{digits}e-2" if suffix == "%" else digits)
    if value is None or not math.isfinite(value):
        raise BadValueError(f"has the position {quote(text)}, which is not a number", _POSITION_HINT)
    return value, unit


def _spans(text: str) -> list[Span]:
    """Return the places of the items between the separators, empty ones too."""
    ends = [match.start() for match in re.finditer("[,;]", text)]
    return [*zip([0, *(end + 1 for end in ends)], [*ends, len(text)], strict=True)]


def _item(text: str, span: Span, index: int, reading: Reading) -> _Item:
    start, end = span
    at = _AT.search(text, start, end)
    middle = at.start() if at else end
    if not text[start:middle].strip():
        what = 'has no value before "@"' if at else "has an empty keyframe"
        raise BadValueError(what, "write VALUE@POSITION, as in 0.2@0,1@0.5", span)
    try:
        value = read_number(text[start:middle])
    except BadValueError as error:
        raise BadValueError(error.reason, error.hint, (start, middle)) from None
    if at is None:
        return _without_position(value, index, span, reading)
    if not text[at.end() : end].strip():
        raise BadValueError('has no position after "@"', _POSITION_HINT, span)
    try:
        place, unit = read_position(text[at.end() : end])
    except BadValueError as error:
        raise BadValueError(error.reason, error.hint, (at.end(), end)) from None
    return _Item(value, place, unit, span)


def _without_position(value: float, index: int, span: Span, reading: Reading) -> _Item:
    if index == 0:
        message = "the first keyframe has no position and is put at 0; loractl would take it for the whole list"
        reading.remarks.append(Remark("info", span, message, "write @0 after it"))
        return _Item(value, 0.0, None, span)
    message = "this keyframe has no position and is put at 1, as loractl does"
    reading.remarks.append(Remark("warning", span, message, _POSITION_HINT))
    return _Item(value, 1.0, None, span)


def _inside(text: str) -> str:
    """Return what stands in brackets, at its places in the text."""
    start, end = text.index("["), len(text.rstrip()) - 1
    if text[end] != "]":
        raise BadValueError('has no "]" at its end', "write the keyframes as in [0@0,1@0.5]", (end + 1, end + 1))
    return f"{text[:start]} {text[start + 1 : end]} {text[end + 1 :]}"


def _as_shares(items: Sequence[_Item], text: str, reading: Reading) -> list[_Item]:
    """Return the items of a list in brackets, whose positions have no unit; each has to have one, and there are two."""
    for item in items:
        if item.unit is not None or _AT.search(text, *item.span) is None:
            reading.remarks.clear()
            raise BadValueError("has a keyframe in brackets that is not VALUE@SHARE", "write [0@0,1@0.5]", item.span)
        _note_outside(item, reading)
    if len(items) < 2:
        raise BadValueError("has one keyframe in brackets", "write two or more, as in [0@0,1@0.5], or the number alone")
    return [item._replace(unit="share") for item in items]


def _note_outside(item: _Item, reading: Reading) -> None:
    """Say of a share or a fraction, or of whatever is below 0, that no step is there."""
    if item.place < 0:
        reading.remarks.append(Remark("warning", item.span, "this keyframe lies before the first step"))
    if item.unit in ("fraction", None) and item.place > 1:
        reading.remarks.append(Remark("warning", item.span, "this keyframe lies after the last step"))


def _with_units(items: Sequence[_Item], reading: Reading) -> list[_Item]:
    """Return the items with a unit each: a position without one is a fraction if the greatest of them is at most 1."""
    bare = [item for item in items if item.unit is None]
    by_sigma = [item for item in items if item.unit == "sigma"]
    if by_sigma and len(by_sigma) < len(items):
        other = next(item for item in items if item.unit != "sigma")
        raise BadValueError("mixes noise levels with other positions", "give all a sigma, or none", other.span)
    unit: Unit = "fraction" if max((item.place for item in bare), default=0) <= 1 else "step"
    for item in bare if unit == "step" else ():
        if 0 < item.place < 1:
            message = f"the position {item.place:g} is a step here, since another one is greater than 1"
            reading.remarks.append(Remark("warning", item.span, message, f"write {item.place * 100:g}% for a fraction"))
    items = [item if item.unit else item._replace(unit=unit) for item in items]
    for item in items:
        _note_outside(item, reading)
    return items


def _in_order(items: Sequence[_Item], reading: Reading) -> list[_Item]:
    """Return the items in the order of time, of those at one position the first and the last.

    Fractions and steps among each other stay as written: which comes first is known when the number of steps is.
    """
    ordered = [*items]
    if len({item.unit for item in items}) == 1:
        ordered.sort(key=lambda item: -item.place if item.unit == "sigma" else item.place)
    if ordered != [*items]:
        moved = next(item for item, right in zip(items, ordered, strict=True) if item is not right)
        reading.remarks.append(Remark("info", moved.span, "the keyframes from here on are put in order of time"))
    kept: list[_Item] = []
    for _, group in groupby(ordered, key=lambda item: (item.place, item.unit)):
        same = [*group]
        if len(same) > 1:
            message = "a keyframe at this position was given before; the strength jumps here, and the last one counts"
            reading.remarks.append(Remark("info", same[-1].span, message))
        kept += [same[0], same[-1]] if len(same) > 1 else same
    return kept
