"""Prompts with another strength or another LoRA: what the axes of an XYZ plot, or of a sweep, ask for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace

from lora_runtime.prompt.parser import parse_prompt
from lora_runtime.prompt.tags import LoraTag
from lora_runtime.prompt.writer import format_tag, unparse

__all__ = ["strengths", "with_lora", "with_strength"]

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)"
_RANGE = re.compile(rf"\s*({_NUMBER})\s*-\s*({_NUMBER})\s*(?:\(\s*([-+]?(?:\d+\.?\d*|\.\d+))\s*\)|\[\s*(\d+)\s*\])?\s*")
_MOST = 1000  # values on one axis: more is a typing error


def strengths(text: str) -> list[str]:
    """Return the values of a strength axis, each "name: number", or a number alone, which means all LoRAs.

    "ink: 0-1(+0.25)" counts in steps, "ink: 0-1[5]" makes five, "ink: 0-1" counts in ones, "ink: 0.2, 0.5" lists them;
    the last name goes on until another comes: "ink: 0.2, 0.5, watercolor: 1". Numbers before any name are for all.
    Raises ValueError for anything else.
    """
    values: list[str] = []
    name = ""
    for part in filter(str.strip, text.split(",")):
        head, colon, numbers = part.rpartition(":")
        name = head.strip() if colon else name
        if colon and not name:
            raise ValueError(f'"{part.strip()}" has no name before its colon')
        values += [f"{name}: {number:g}" if name else f"{number:g}" for number in _numbers(numbers)]
        if len(values) > _MOST:
            raise ValueError(f'"{part.strip()}" makes more than {_MOST} values; take larger steps')
    return values


def _numbers(text: str) -> Iterator[float]:
    match = _RANGE.fullmatch(text)
    if match is None:
        try:
            yield float(text)
        except ValueError:
            raise ValueError(f'"{text.strip()}" is neither a number nor a range such as 0-1(+0.25) or 0-1[5]') from None
        return
    first, last = float(match[1]), float(match[2])
    if match[4]:
        count = int(match[4])
        step = (last - first) / (count - 1) if count > 1 else 0.0
    else:
        step = float(match[3]) if match[3] else (1.0 if last >= first else -1.0)
        if step == 0 or (last - first) / step < 0:
            raise ValueError(f'"{text.strip()}" never arrives: the step should lead from {first:g} to {last:g}')
        count = int((last - first) / step + 1e-9) + 1  # 0-1(+0.1) ends with 1 although 10 × 0.1 is a little more
    if count > _MOST:
        raise ValueError(f'"{text.strip()}" makes more than {_MOST} values; take larger steps')
    # From the start and not from the last value: 0.1 added ten times is not 1.
    yield from (round(first + step * index, 10) for index in range(count))


def with_strength(prompt: str, value: str, same: Callable[[str, str], bool]) -> str:
    """Return the prompt with a LoRA at another strength, both for the text encoder and the denoiser.

    `value` is "name: number", or a number for all that the prompt has. `same(name, other)` says whether two names mean
    one file. A LoRA that the prompt does not have is added at its end.
    """
    name, _, number = value.rpartition(":")
    name, strength = name.strip(), float(number)
    parsed = parse_prompt(prompt)
    if not name:
        return unparse(replace(parsed, tags=tuple(replace(tag, te=strength, unet=strength) for tag in parsed.tags)))
    changed = [
        replace(tag, te=strength, unet=strength) if tag.name == name or same(tag.name, name) else tag
        for tag in parsed.tags
    ]
    if changed == list(parsed.tags) and not any(tag.name == name or same(tag.name, name) for tag in parsed.tags):
        return prompt + format_tag(LoraTag(name, strength, strength))
    return unparse(replace(parsed, tags=tuple(changed)))


def with_lora(prompt: str, name: str, strength: float) -> str:
    """Return the prompt with its first LoRA replaced by another, at the strengths of the first.

    Without any it is added, at `strength`; "None" takes the first away.
    """
    parsed = parse_prompt(prompt)
    if name == "None":
        return prompt if not parsed.tags else prompt[: parsed.tags[0].span[0]] + prompt[parsed.tags[0].span[1] :]
    if not parsed.tags:
        return prompt + format_tag(LoraTag(name, strength, strength))
    first, *rest = parsed.tags
    return unparse(replace(parsed, tags=(replace(first, name=name), *rest)))
