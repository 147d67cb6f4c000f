"""Where a place in a text is, and a picture of it with carets, for messages that a person reads."""

from __future__ import annotations

import unicodedata

# An excerpt shows up to this many characters before and after the start of the place: together about one
# terminal line, and most of it after, since what follows a mistake explains it more often than what precedes it.
_BEFORE = 30
_AFTER = 45


def visible(text: str, limit: int = 40) -> str:
    """Return `text` on one line: shortened to `limit` characters, and with what cannot be printed escaped."""
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def quote(text: str, limit: int = 40) -> str:
    """Return `visible(text)` in double quotes."""
    return f'"{visible(text, limit)}"'


def line_and_column(source: str, position: int) -> tuple[int, int]:
    """Return the line and the column of `position`, both counted from 1, the column in code points."""
    return source.count("\n", 0, position) + 1, position - source.rfind("\n", 0, position)


def excerpt(source: str, span: tuple[int, int]) -> str:
    """Return the line of `source` where `span` starts, and below it carets under the part of the span in that line.

    A long line is cut to the surroundings of the place, with "…" for what is left out. The columns count as a terminal
    shows them: two for a wide character, none for a combining one. A tab counts as one blank, and what cannot be
    printed is shown as U+FFFD, so that the carets stay in place. An empty span gets one caret.
    """
    start, end = span
    first = source.rfind("\n", 0, start) + 1
    last = source.find("\n", start)
    last = len(source) if last < 0 else last
    left = max(first, start - _BEFORE)
    right = min(last, start + _AFTER)
    before = ("…" if left > first else "") + _shown(source[left:start])
    marked = _shown(source[start : min(end, right)])
    after = _shown(source[start + len(marked) : right]).rstrip() + ("…" if right < last else "")
    return f"{before}{marked}{after}\n{' ' * _width(before)}{'^' * max(1, _width(marked))}"


def _shown(text: str) -> str:
    """Return `text`, one character for one, as it can be shown in a single line."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "\ufffd" for c in text)


def _width(text: str) -> int:
    """Return how many columns of a terminal `text` takes."""
    return sum(_columns(c) for c in text)


def _columns(c: str) -> int:
    if unicodedata.category(c) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(c) in "WF" else 1
