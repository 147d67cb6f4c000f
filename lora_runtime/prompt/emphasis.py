"""Emphasis as AUTOMATIC1111's WebUI reads it: (more), [less], (so much:1.3), BREAK between chunks.

A bracket counts 1.1, a square one 1/1.1, a number is taken as it is; brackets multiply. What is not closed counts as if
it were at the end; one that closes nothing is a character. A backslash makes a bracket a character.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["BREAK", "Piece", "has_emphasis", "weighted"]

_STEP = 1.1
_DEEPEST = 5000  # brackets; more would be beyond any number
_CLOSES = {")": "(", "]": "["}
_TOKEN = re.compile(r"\\[()\[\]\\]|\\|[(\[)\]]|:\s{0,8}([+-]?[.\d]{1,32})\s{0,8}\)|:|[^\\()\[\]:]+")
_BREAK = re.compile(r"\s*\bBREAK\b\s*")
_MEANT = re.compile(r"\([^()\n]{1,300}:\s{0,8}[+-]?[.\d]{1,32}\s{0,8}\)|\({2,}|\bBREAK\b")


class Piece(NamedTuple):
    """A run of text and its weight."""

    text: str
    weight: float


BREAK = Piece("BREAK", -1.0)


class _Range(NamedTuple):
    """What one pair of brackets is around."""

    start: int
    end: int
    kind: str  # the opening bracket
    number: float | None = None


def has_emphasis(text: str) -> bool:
    """Return whether somebody means emphasis: a number in brackets, brackets in brackets, or BREAK."""
    return _MEANT.search(text) is not None


def weighted(text: str) -> list[Piece]:
    """Return the runs of a prompt, neighbours of one weight as one; of an empty prompt one empty run."""
    texts: list[str | None] = []  # None: BREAK
    ranges: list[_Range] = []  # of texts
    opened: dict[str, list[int]] = {"(": [], "[": []}  # in the WebUI the two kinds know nothing of each other
    for match in _TOKEN.finditer(text):
        token, number = match[0], _number(match[1])
        if token in opened:
            opened[token].append(len(texts))
        elif number is not None and opened["("]:
            ranges.append(_Range(opened["("].pop(), len(texts), "(", number))
        elif token in _CLOSES and opened[_CLOSES[token]]:
            kind = _CLOSES[token]
            ranges.append(_Range(opened[kind].pop(), len(texts), kind))
        elif token[0] == "\\":
            texts.append(token[1:])  # one before nothing that it could mean is left out, as in the WebUI
        else:
            first, *others = _BREAK.split(token)
            texts.append(first)
            for other in others:
                texts += [None, other]
    ranges += [_Range(start, len(texts), kind) for kind, starts in opened.items() for start in starts]
    found: list[Piece] = []
    for run, weight in zip(texts, _weights(len(texts), ranges), strict=True):
        if run is None:
            found.append(BREAK)
        elif found and found[-1] is not BREAK and found[-1].weight == weight:
            found[-1] = Piece(found[-1].text + run, weight)
        else:
            found.append(Piece(run, weight))
    return found or [Piece("", 1.0)]


def _weights(count: int, ranges: list[_Range]) -> Iterator[float]:
    """Yield the weight of each of `count` texts: the product of what the ranges around it count.

    Ranges of one kind lie within each other, so that those around a text are a stack.
    """
    begins: list[list[_Range]] = [[] for _ in range(count + 1)]
    for each in sorted(ranges, key=lambda each: -each.end):
        if each.start < each.end:
            begins[each.start].append(each)
    numbers, around = [1.0], {"(": 0, "[": 0}
    closing: list[list[_Range]] = [[] for _ in range(count + 1)]
    for place in range(count):
        for each in closing[place]:
            if each.number is None:
                around[each.kind] -= 1
            else:
                numbers.pop()
        for each in begins[place]:
            closing[each.end].append(each)
            if each.number is None:
                around[each.kind] += 1
            else:
                numbers.append(numbers[-1] * each.number)
        yield numbers[-1] * _STEP ** max(-_DEEPEST, min(around["("] - around["["], _DEEPEST))


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None
