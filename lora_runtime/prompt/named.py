"""LoRAs asked for without a prompt: names and strengths as a mapping, read as the tags that they stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from lora_runtime.prompt.parser import parse_prompt
from lora_runtime.prompt.quotes import quoted
from lora_runtime.prompt.strength import Curve, Strength, number
from lora_runtime.prompt.tags import Prompt

__all__ = ["Asked", "named_tags"]

# A strength, or one for the text encoders and one for the denoiser, or what stands behind the name in a tag, as text or
# by argument.
_Value: TypeAlias = float | str | Curve
Asked: TypeAlias = _Value | tuple[_Value, _Value] | Mapping[str, _Value]


def named_tags(
    adapters: Mapping[str, Asked], *, strict: bool = False, presets: Mapping[str, str] | None = None
) -> Prompt:
    """Return a prompt of nothing but a tag for each name, in the native dialect, which can quote any name.

    A value may be a number, a pair (te, unet), a text as behind a tag's name ("0@0,1@1", "te=0.5:IN=0"), or a mapping
    of a tag's arguments. TypeError for anything else, and for names that are no text. What cannot be read is in the
    prompt's diagnostics, or with `strict` a TagSyntaxError.
    """
    if not isinstance(adapters, Mapping):
        raise TypeError(f'adapters is {adapters!r:.60}: give a mapping of names to strengths, such as {{"ink": 0.7}}')
    for name in adapters:
        if not isinstance(name, str):
            raise TypeError(f"adapters has the name {name!r:.60}: give the name of a file, as text")
    text = "".join(f"<lora:{quoted(name)}:{_fields(name, value)}>" for name, value in adapters.items())
    return parse_prompt(text, dialect="native", strict=strict, presets=presets)


def _fields(name: str, value: Asked) -> str:
    if isinstance(value, Mapping):
        return ":".join(f"{key}={_text(name, each)}" for key, each in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) != 2:
            raise TypeError(f"adapters[{name!r}] has {len(value)} values: give one, or a pair (te, unet)")
        return ":".join(f"{key}={_text(name, each)}" for key, each in zip(("te", "unet"), value, strict=True))
    return _text(name, value)


def _text(name: str, value: Strength | str) -> str:
    if isinstance(value, (str, Curve)):
        return str(value)
    try:
        return number(value)
    except OverflowError:
        raise TypeError(f"adapters[{name!r}] is beyond what a number with a point can hold: give a number") from None
    except (TypeError, ValueError):
        raise TypeError(
            f"adapters[{name!r}] is {value!r:.60}: give a number, a pair (te, unet), a text as in a tag, or a mapping "
            "of its arguments"
        ) from None
