"""Places in a prompt as a text area counts them, and what of a prompt is no tag."""

from __future__ import annotations

import re

from lora_runtime.prompt import Prompt
from lora_runtime.prompt.tags import Span

__all__ = ["from_utf16", "place_of_word", "utf16_span"]


def utf16_span(source: str, span: Span) -> list[int]:
    """Return a span in UTF-16 code units."""
    return [place + _astral(source[:place]) for place in span]


def from_utf16(source: str, place: int) -> int:
    """Return the number of code points before a place in UTF-16 code units; within a pair, those before the pair."""
    units = 0
    for index, character in enumerate(source):
        units += 1 + (character > "\uffff")
        if units > place:
            return index
    return len(source)


def place_of_word(prompt: Prompt, word: str) -> Span | None:
    """Return where trigger words stand in the prompt outside of tags, as words and in either case; the first place."""
    pattern = rf"(?<!\w){re.escape(word)}(?!\w)"
    tags = [*(tag.span for tag in prompt.tags), *(tag.span for tag in prompt.others)]
    for match in re.finditer(pattern, prompt.source, re.IGNORECASE):
        if not any(start < match.end() and match.start() < end for start, end in tags):
            return match.span()
    return None


def _astral(text: str) -> int:
    return 0 if text.isascii() else sum(character > "\uffff" for character in text)
