"""What there is to say of a prompt, with what a button could do about it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from lora_runtime.panel.places import utf16_span
from lora_runtime.prompt import Diagnostic, Prompt, parse_prompt
from lora_runtime.prompt.tags import Span

__all__ = ["fix", "notice", "notices"]

# Each button is tried out on the whole prompt; what is longer, or has more mistakes, is another kind of text.
_MOST = 20
_LONGEST = 20_000
_WRITE = re.compile(r"write (.+)")
_MEANT = re.compile(r"did you mean (.+)\?")
# What stands for something in a hint, or is cut: nothing that a button could write.
_STANDS_FOR = ("NAME", "FILE", "VALUE", "BLOCKS", " such as ", " or ", "…")


def notice(severity: str, message: str, hint: str = "", fixes: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """Return something to say, as JSON can hold it."""
    return {"severity": severity, "message": message, "hint": hint, "fixes": fixes or []}


def fix(source: str, span: Span, text: str, label: str = "") -> dict[str, Any]:
    """Return what a button writes in the place of a span, and what stands on it."""
    return {"label": label or text, "span": utf16_span(source, span), "text": text}


def notices(prompt: Prompt, presets: Mapping[str, str]) -> Iterator[tuple[Span, dict[str, Any]]]:
    """Yield the span of what is wrong in a prompt, and what to say of it."""
    wrong = [said for said in prompt.diagnostics if said.severity != "info"]
    most = _MOST if len(prompt.source) <= _LONGEST else 0
    for number, said in enumerate(wrong):
        found = [*_fixes(prompt, said, presets)] if number < most else []
        yield said.span, notice(said.severity, said.message, said.hint, found)


def _fixes(prompt: Prompt, said: Diagnostic, presets: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Yield the button for a hint, if following it to the letter leaves less to say."""
    text = _text(prompt.source, said)
    if not text or any(sign in text for sign in _STANDS_FOR):
        return
    start, end = said.span
    after = prompt.source[:start] + text + prompt.source[end:]
    if _problems(parse_prompt(after, scope=prompt.scope, presets=presets)) < _problems(prompt):
        label = text if start < end else f"add {text}"
        yield fix(prompt.source, said.span, text, label)


def _text(source: str, said: Diagnostic) -> str:
    """Return what a hint says is to be written in the place of its span, or ""."""
    start, end = said.span
    written = source[start:end]
    if match := _WRITE.fullmatch(said.hint):
        # Of a tag that is not closed the span is the place where the ">" is missing.
        return ">" if start == end and match[1].endswith(">") else match[1]
    if match := _MEANT.fullmatch(said.hint):
        meant = match[1]
        if meant.endswith("=") and "=" in written:
            return meant + written.partition("=")[2]
        if meant.endswith(":") and written.startswith("<"):
            return meant + written.partition(":")[2]
        return meant
    return ""


def _problems(prompt: Prompt) -> int:
    return sum(said.severity != "info" for said in prompt.diagnostics)
