"""Where a tag stands in the text around it: inside prompt editing or alternation, and in which part between ANDs.

The text is the clean text, as the WebUI reads it, and a tag is a place in it. [a:b:10] is a for 10 steps and b after
them, [b:10] and [a::10] have one of the two; a number with a point is a fraction of the run. [a|b] takes turns, a step
each. Brackets that do not fit together mean nothing, as in the WebUI.

Three forms are those of comfyui-prompt-control, which the WebUI reads as words: [a:1,5] is a from 1 to 5,
[a:b:c:1,5] is a before, b between and c after, [a:b:c:1] the same without an end, and [SEQ:a:1:b:5] is a up to 1 and b
from there to 5.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from lora_runtime.prompt.strength import Position, Turn, Window

_TOKEN = re.compile(r"\\.|[\[\]()|:]", re.DOTALL)
_NUMBER = re.compile(r"\s*[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?\s*")
_HOLLOW = re.compile(r"[(\[]\s*(?::\s*[\d.]+\s*)?[)\]]")  # emphasis of nothing
_AND = re.compile(r"\bAND\b")
MOST_LEVELS = 32
_END = Position(1.0)


@dataclass(slots=True)
class _Bracket:
    """A bracket while it is read: the one around it, the part of that it stands in, and its own cuts at ":" and "|"."""

    opener: str
    start: int
    outer: _Bracket | None
    part: int
    cuts: list[tuple[str, int]] = field(default_factory=list)
    whole: bool = True  # nothing in it is open
    whens: tuple[Window | Turn | None, ...] = ()  # of each part


def scopes(text: str, places: Sequence[int]) -> list[tuple[Window | Turn, ...]]:
    """Return when each of the places, in rising order, takes part: () is always.

    Of more than MOST_LEVELS conditions the innermost MOST_LEVELS + 1 are returned.
    """
    if "[" not in text:
        return [()] * len(places)
    homes: list[tuple[_Bracket | None, int]] = []
    top: _Bracket | None = None
    for match in _TOKEN.finditer(text):
        while len(homes) < len(places) and places[len(homes)] <= match.start():
            homes.append((top, len(top.cuts) if top else 0))
        top = _after(top, match[0], match.start(), text)
    homes += [(top, len(top.cuts) if top else 0)] * (len(places) - len(homes))
    return [_whens(*home) for home in homes]


class Edit(NamedTuple):
    """A bracket of prompt editing or alternation in a text, from `start` to `end`; `pieces` are its alternatives."""

    start: int
    end: int
    pieces: tuple[tuple[int, int], ...]


def edits(text: str) -> list[Edit]:
    """Return the brackets that say when text takes part, the inner ones first."""
    found: list[Edit] = []
    top: _Bracket | None = None
    for match in _TOKEN.finditer(text):
        before, top = top, _after(top, match[0], match.start(), text)
        if before is not None and before.whens and match[0] == "]" and before is not top:
            pieces = zip(_spans(before, match.start()), before.whens, strict=True)
            found.append(Edit(before.start, match.end(), tuple(span for span, when in pieces if when is not None)))
    return found


def without_edits(text: str, places: Sequence[int]) -> tuple[str, list[Edit]]:
    """Return the text without the brackets that only say when the tags at `places` act, and the other brackets.

    For who paints a prompt as one text: a bracket with text in it is left as it is.
    """
    gone: list[tuple[int, int]] = []
    others: list[Edit] = []
    for edit in edits(text):
        first = len(gone)
        while first and gone[first - 1][0] > edit.start:
            first -= 1
        inner = gone[first:]
        words = "".join(_without(text, piece, inner) for piece in edit.pieces)
        at = bisect_right(places, edit.start)
        if at < len(places) and places[at] < edit.end and not _HOLLOW.sub("", words).strip():
            gone[first:] = [(edit.start, edit.end)]
        else:
            others.append(edit)
    return _without(text, (0, len(text)), gone), others


def _without(text: str, span: tuple[int, int], gone: Sequence[tuple[int, int]]) -> str:
    """Return the text of a span without the spans in it that are gone, which are in order."""
    start, end = span
    kept = []
    for first, last in gone:
        if start <= first and last <= end:
            kept.append(text[start:first])
            start = last
    return "".join([*kept, text[start:end]])


def parts(text: str, places: Sequence[int]) -> list[int | None]:
    """Return the number of the part that each place stands in; None where the text has no AND."""
    ends = [match.end() for match in _AND.finditer(text)]
    return [bisect_right(ends, place) if ends else None for place in places]


def _after(top: _Bracket | None, token: str, place: int, text: str) -> _Bracket | None:
    """Return the innermost bracket that is open after a token."""
    if token in "[(":
        return _Bracket(token, place, top, len(top.cuts) if top else 0)
    if top is None or token[0] == "\\":
        return top
    if token in ":|":
        top.cuts.append((token, place))
        return top
    if token != {"[": "]", "(": ")"}[top.opener]:
        top.whole = False
        return top
    if top.opener == "[" and top.whole:
        top.whens = _bracket_whens(top, place, text)
    return top.outer


def _spans(bracket: _Bracket, end: int) -> list[tuple[int, int]]:
    """Return the parts of a bracket that closes at `end`."""
    cuts = [place for _, place in bracket.cuts]
    return [*zip([bracket.start + 1, *(cut + 1 for cut in cuts)], [*cuts, end], strict=True)]


def _bracket_whens(bracket: _Bracket, end: int, text: str) -> tuple[Window | Turn | None, ...]:
    """Return when each part of a bracket takes part, None for the name and the numbers; () where it says nothing."""
    kinds, count = {kind for kind, _ in bracket.cuts}, len(bracket.cuts)
    if kinds == {"|"}:
        return tuple(Turn(index, count + 1) for index in range(count + 1))
    if kinds != {":"}:
        return ()
    spans = _spans(bracket, end)
    if count > 1 and text[slice(*spans[0])].strip() == "SEQ":
        return _sequence([_positions(text[slice(*span)]) for span in spans[2::2]], count)
    changes = _positions(text[slice(*spans[-1])])
    if count > 3 or not changes or len(changes) > 2:
        return ()
    if count == 3 and len(changes) == 1:
        changes = (*changes, _END)
    if len(changes) == 1:
        before, after = Window(stop=changes[0]), Window(start=changes[0])
        return (after, None) if count == 1 else (before, after, None)
    whens = Window(stop=changes[0]), Window(*changes), Window(start=changes[1])
    return (whens[1], None) if count == 1 else (*whens[1:], None) if count == 2 else (*whens, None)


def _sequence(ends: Sequence[tuple[Position, ...]], count: int) -> tuple[Window | Turn | None, ...]:
    """Return when the parts of [SEQ:a:1:b:5] take part, by the numbers behind each text."""
    if count % 2 or any(len(end) != 1 for end in ends):
        return ()
    starts = [None, *(end[0] for end in ends[:-1])]
    texts = (Window(start, end[0]) for start, end in zip(starts, ends, strict=True))
    return (None, *(when for window in texts for when in (window, None)))


def _positions(written: str) -> tuple[Position, ...]:
    """Return the places in the run that a text names, parted by a comma; () where it is no list of numbers."""
    numbers = written.split(",", 2)
    if not all(map(_NUMBER.fullmatch, numbers)):
        return ()
    return tuple(Position(float(number), "fraction" if "." in number else "step") for number in numbers)


def _whens(bracket: _Bracket | None, part: int) -> tuple[Window | Turn, ...]:
    """Return when a part of a bracket takes part, the outermost condition first."""
    found: list[Window | Turn] = []
    while bracket is not None and len(found) <= MOST_LEVELS:
        if part < len(bracket.whens) and (when := bracket.whens[part]) is not None:
            found.append(when)
        part = bracket.part
        bracket = bracket.outer
    return tuple(reversed(found))
