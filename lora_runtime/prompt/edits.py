"""Tags with one thing changed, all else as it was written: what a slider or a button does to a tag.

`writer.py` writes a tag anew from its meaning; here a preset keeps its name, and a field that nobody understands stays.
Everything is in the WebUI's dialect.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Collection, Mapping
from itertools import accumulate

from lora_runtime.prompt.arguments import BY_NAME
from lora_runtime.prompt.keyframes import in_brackets
from lora_runtime.prompt.parser import parse_prompt, written_fields
from lora_runtime.prompt.tags import LoraTag

__all__ = ["EditError", "is_muted", "muted", "renamed", "unmuted", "with_arguments"]

# What makes a tag act: a muted one has none of these but a 0.
STRENGTHS = ("te", "unet", "hr", "hrte", "hrunet", "in", "mid", "out")
_BY_POSITION = ("te", "unet", "dyn")
_BLANKS = re.compile(r"\s+")


class EditError(ValueError):
    """What is asked of a tag cannot be written into one."""


def with_arguments(tag: str, changes: Mapping[str, str | None], presets: Mapping[str, str]) -> str:
    """Return a tag that gives these arguments these texts, None for none; the rest of it stays as it is written.

    Keys may be blocks and patterns too ("IN04"): of these the last counts, so they go to the end. EditError if the
    text cannot stand there.
    """
    for text in (*changes, *filter(None, changes.values())):
        if any(sign in text for sign in ":<>\n\r") or "=" in text:
            raise EditError(f'"{text}" cannot stand in a tag: it has a sign that ends a field')
    name, *fields = written_fields(tag, presets)
    rewritten = () if changes.keys().isdisjoint(_BY_POSITION) else _BY_POSITION
    placed = _strengths({field.argument: field.value for field in fields}, changes) if rewritten else []
    rest: list[str] = []
    waiting = {key: text for key, text in changes.items() if key not in _BY_POSITION}
    for field in fields:
        if field.argument in rewritten:
            continue
        if field.argument and field.argument in changes:
            again = waiting.pop(field.argument, None) if field.argument in BY_NAME else None
            rest += [] if again is None else [f"{field.argument}={again}"]
            continue
        rest.append(field.text)
    rest += [f"{key}={text}" for key, text in waiting.items() if text is not None]
    given = {*placed, *(f"{key}={text}" for key, text in changes.items())}
    return _checked(tag, [name.text, *placed, *rest], given, presets)


def renamed(tag: str, name: str, presets: Mapping[str, str]) -> str:
    """Return the tag with another name in it; EditError if no tag can have it."""
    _, *fields = written_fields(tag, presets)
    made = _joined(tag, [name, *(field.text for field in fields)])
    read = parse_prompt(made, presets=presets).tags
    if [(one.raw, one.name) for one in read] != [(made, name)]:
        raise EditError(f'"{name}" cannot stand in a tag as a name')
    return made


def is_muted(tag: LoraTag) -> bool:
    """Return whether a tag is off and tells what it was."""
    return bool(tag.was) and tag.te == tag.unet == 0.0


def muted(tag: str, presets: Mapping[str, str]) -> str:
    """Return the tag with the strength 0 and what it was behind `was=`: <lora:ink:0:was=0.7>."""
    _, *fields = written_fields(tag, presets)
    given = {field.argument: _BLANKS.sub("", field.value) for field in fields if field.argument in STRENGTHS}
    te, unet = _both(given)
    if te == unet and len(given.keys() - {"te", "unet"}) == 0:
        was = te
    else:
        given |= {"te": te, "unet": unet}
        was = " ".join(f"{key} {given[key]}" for key in STRENGTHS if key in given)
    return with_arguments(tag, {**dict.fromkeys(STRENGTHS), "te": "0", "unet": "0", "was": was}, presets)


def unmuted(tag: str, presets: Mapping[str, str]) -> str:
    """Return a muted tag with the strengths that it had; EditError where they are not to be read."""
    _, *fields = written_fields(tag, presets)
    words = " ".join(field.value for field in fields if field.argument == "was").split()
    pairs = dict(zip(words[::2], words[1::2], strict=False)) if len(words) > 1 else {}
    if len(words) == 1:
        pairs = {"te": words[0], "unet": words[0]}
    if not pairs or (len(words) > 1 and len(words) % 2) or not pairs.keys() <= set(STRENGTHS):
        raise EditError(f'what the tag was cannot be read from "was={" ".join(words)}"; give it a strength')
    return with_arguments(tag, {**dict.fromkeys(STRENGTHS), **pairs, "was": None}, presets)


def _both(given: Mapping[str, str]) -> tuple[str, str]:
    """Return the texts of both strengths where a tag may leave them out; see `with_defaults`."""
    te, unet = given.get("te"), given.get("unet")
    if te is None and unet is not None and in_brackets(unet):
        return "0", unet.strip()
    te = "1" if te is None else te.strip()
    return te, te if unet is None else unet.strip()


def _strengths(given: Mapping[str, str], changes: Mapping[str, str | None]) -> list[str]:
    """Return the fields of strengths and rank as they stand behind the name; a strength taken out is 1."""
    te, unet = ((changes.get(key, text) or "1").strip() for key, text in zip(("te", "unet"), _both(given), strict=True))
    dyn = changes.get("dyn", given.get("dyn"))
    fields = [te] if te == unet and not in_brackets(te) else [f"te={te}", f"unet={unet}"]
    return fields if dyn is None else [*fields, f"dyn={dyn.strip()}"]


def _joined(tag: str, fields: list[str]) -> str:
    return f"{tag[: tag.index(':')]}:{':'.join(fields)}>"


def _checked(tag: str, fields: list[str], new: Collection[str], presets: Mapping[str, str]) -> str:
    """Return the tag with these fields, if it is read as one and nothing is wrong with the new ones; else EditError."""
    made = _joined(tag, fields)
    prompt = parse_prompt(made, presets=presets)
    starts = [*accumulate((len(text) + 1 for text in fields[:-1]), initial=made.index(":") + 1)]
    for said in prompt.diagnostics:
        about = fields[max(0, bisect_right(starts, said.span[0]) - 1)]
        if said.severity == "error" or (said.severity == "warning" and about in new):
            raise EditError(f"{said.message}{f': {said.hint}' if said.hint else ''}")
    if [one.raw for one in prompt.tags] != [made]:
        raise EditError(f'"{made}" would not be read as one tag')
    return made
