"""One change of one tag, as the one text that it makes and the span of the prompt that this replaces."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, get_args

from lora_runtime.blocks import FLUX, UNET
from lora_runtime.panel.places import place_of_word, utf16_span
from lora_runtime.panel.rows import ratio_of
from lora_runtime.prompt import LoraTag, Prompt, parse_prompt
from lora_runtime.prompt.edits import EditError, is_muted, muted, renamed, unmuted, with_arguments
from lora_runtime.prompt.keyframes import MOST_KEYS
from lora_runtime.prompt.parser import written_fields
from lora_runtime.prompt.presets import common_presets
from lora_runtime.prompt.strength import Curve, Key, Position, Unit, number
from lora_runtime.prompt.tags import Scope, Span

__all__ = ["edit"]

_ARGUMENTS = frozenset(
    {"te", "unet", "hr", "hrte", "hrunet", "start", "stop", "step", "curve", "module", "dyn", "box", "mask", "soft"}
)
_BLOCK = "block:"

# Of a prompt and the index of a tag: what is replaced by what.
_Replaced = tuple[Span, str]


def edit(
    prompt: str,
    tag: int,
    field: str,
    value: object,
    *,
    presets: Mapping[str, str] | None = None,
    scope: Scope = "all",
) -> dict[str, Any]:
    """Return {"span", "text"}: what stands in the prompt after a change, and in whose place; or {"error"}.

    `tag` is the tag's number in `tags`. `field` and `value` are one of

        strength, te, unet, hr, hrte, hrunet     a number or keyframes: text, or {"unit", "keys": [[place, value], …]};
                                                 "" for none
        start, stop, step, curve, module, dyn    the text of the field; "" for none
        box, mask, soft                          the same; the edge goes with its box
        block:IN04                               a number or keyframes
        preset                                   the name of block weights, in the place of single blocks; "" for none
        name                                     another file's
        mute                                     whether the tag is off
        word, no-word                            trigger words that come into the prompt, and go
        delete                                   any
        move                                     the number that the tag is to have; the picture does not depend on it
    """
    known = common_presets() if presets is None else presets
    read = parse_prompt(prompt, scope=scope, presets=known)
    if not 0 <= tag < len(read.tags):
        return {"error": f"there is no tag {tag + 1}: the prompt has {len(read.tags)}"}
    try:
        text = _as_text(value)
        span, made = _change(read, tag, field, text, known)
    except EditError as error:
        return {"error": str(error)}
    return {"span": utf16_span(prompt, span), "text": made}


def _change(prompt: Prompt, index: int, field: str, text: str, presets: Mapping[str, str]) -> _Replaced:
    tag = prompt.tags[index]
    if field == "delete":
        return _without(prompt.source, tag.span), ""
    if field == "move":
        return _moved(prompt, index, text)
    if field == "word":
        return _with_word(prompt, tag, text)
    if field == "no-word":
        place = place_of_word(prompt, text)
        if place is None:
            raise EditError(f'"{text}" is not in the prompt')
        return _without(prompt.source, place), ""
    if field == "mute":
        if (text == "true") == is_muted(tag):
            return tag.span, tag.raw
        return tag.span, (muted if text == "true" else unmuted)(tag.raw, presets)
    if field == "name":
        return tag.span, renamed(tag.raw, text, presets)
    change = _of_field(field, text, presets)
    if not is_muted(tag):
        return tag.span, change(tag.raw)
    # What is muted is changed as if it were not: the sliders show what it will be.
    try:
        sounding = unmuted(tag.raw, presets)
    except EditError:
        if field not in ("strength", "te", "unet"):
            raise
        return tag.span, change(with_arguments(tag.raw, {"was": None}, presets))
    return tag.span, muted(change(sounding), presets)


def _of_field(field: str, text: str, presets: Mapping[str, str]) -> Callable[[str], str]:
    """Return what makes of a tag the one with another text in a field."""
    given = text.strip() or None
    if field == "strength":
        return lambda tag: with_arguments(tag, {"te": given, "unet": given}, presets)
    if field == "box" and given is None:
        return lambda tag: with_arguments(tag, {"box": None, "soft": None}, presets)
    if field in _ARGUMENTS:
        return lambda tag: with_arguments(tag, {field: given}, presets)
    if field == "preset":
        return lambda tag: _with_preset(tag, given, presets)
    if field.startswith(_BLOCK):
        return lambda tag: _with_ratio(tag, field.removeprefix(_BLOCK), given or "1", presets)
    raise EditError(f'there is nothing called "{field}" in a tag')


def _with_preset(tag: str, name: str | None, presets: Mapping[str, str]) -> str:
    """Return the tag with block weights by name; single blocks would hide what the name says, so they go."""
    if name is not None and name not in presets:
        raise EditError(f'there is no preset "{name}"')
    single = {field.argument for field in written_fields(tag, presets)} & {*UNET, *FLUX}
    key = "lbwe" if name is not None and ":" in presets[name] else "lbw"
    return with_arguments(tag, {"lbw": None, "lbwe": None, **dict.fromkeys(single), key: name}, presets)


def _with_ratio(tag: str, block: str, text: str, presets: Mapping[str, str]) -> str:
    """Return the tag with another weight for a block, and no field for it where the others say so already."""
    without = with_arguments(tag, {block: None}, presets)
    [read] = parse_prompt(without, presets=presets).tags
    ratio = ratio_of(read.conditions.blocks, block)
    said = number(ratio) if isinstance(ratio, (int, float)) else str(ratio)
    return without if said == text else with_arguments(without, {block: text}, presets)


def _moved(prompt: Prompt, index: int, text: str) -> _Replaced:
    """Return the tags from one place to another, the moved one at its new place; the text between them stays."""
    target = int(text) if text.isascii() and text.isdecimal() and len(text) < 9 else -1
    if not 0 <= target < len(prompt.tags):
        raise EditError(f'there is no place "{text}": the prompt has {len(prompt.tags)} tags')
    first, last = sorted((index, target))
    part = list(prompt.tags[first : last + 1])
    order = part[:]
    order.insert(target - first, order.pop(index - first))
    made = order[0].raw
    for before, after, tag in zip(part[:-1], part[1:], order[1:], strict=True):
        made += prompt.source[before.span[1] : after.span[0]] + tag.raw
    return (part[0].span[0], part[-1].span[1]), made


def _with_word(prompt: Prompt, tag: LoraTag, word: str) -> _Replaced:
    """Return trigger words behind their tag, apart from what follows by a comma."""
    if not word.strip() or any(sign in word for sign in "<>\n\r"):
        raise EditError(f'"{word}" cannot come into a prompt as words')
    end = tag.span[1]
    rest = prompt.source[end:].lstrip(" ")
    return (end, end), f" {word}" + ("," if rest and rest[0] not in ",.;\n)]|<" else "")


def _without(source: str, span: Span) -> Span:
    """Return a span with the separator that would be left double: one before it, or at the start behind."""
    start, end = span
    before, after = source[:start], source[end:]
    stripped = before.rstrip(" ")
    if stripped.endswith(",") and (not after.strip() or after.lstrip(" ").startswith((",", "\n"))):
        return len(stripped) - 1, end
    if not before.strip() and after.lstrip(" ").startswith(","):
        rest = after.lstrip(" ")[1:]
        return start, end + len(after) - len(rest.lstrip(" "))
    if before.endswith(" ") and (not after or after.startswith((" ", ",", "\n"))):
        return start - 1, end
    if not before and after.startswith(" "):
        return start, end + 1
    return span


def _as_text(value: object) -> str:
    """Return what JSON has for a value as a tag has it; EditError for anything else."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return number(value) if abs(value) < 1e15 else str(value)
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, dict) and isinstance(value.get("keys"), list) and value.get("unit") in get_args(Unit):
        return _keyframes(value["unit"], value["keys"])
    raise EditError("a value is a text, a number, yes or no, or keyframes with their unit")


def _keyframes(unit: Unit, given: list[Any]) -> str:
    """Return keyframes as a tag has them, a single one as its number."""
    try:
        keys = tuple(Key(float(strength), Position(float(place), unit)) for place, strength in given)
    except (TypeError, ValueError, OverflowError):
        raise EditError("a keyframe is a place and a strength, two numbers") from None
    if not 0 < len(keys) <= MOST_KEYS:
        raise EditError(f"a strength may have 1 to {MOST_KEYS} keyframes, not {len(keys)}")
    if not all(math.isfinite(each) for key in keys for each in (key.value, key.position.value)):
        raise EditError("a keyframe's place and strength are finite numbers")
    return str(Curve(keys)) if len(keys) > 1 else number(keys[0].value)
