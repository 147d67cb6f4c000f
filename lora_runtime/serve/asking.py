"""The bytes of a request to rows, as a sweep has them, or why it is refused. No torch, no server."""

from __future__ import annotations

import json
import math
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lora_runtime.catalog import LoraCatalog
from lora_runtime.errors import CatalogError, LoraError
from lora_runtime.prompt import LoraTag, Prompt, parse_prompt
from lora_runtime.prompt.excerpt import line_and_column
from lora_runtime.serve.explaining import placeless
from lora_runtime.serve.limits import Limits, Refused
from lora_runtime.sweep.rows import Row
from lora_runtime.tag_files import files_of
from lora_runtime.wildcards import is_wildcard

__all__ = ["Asked", "check_names", "read_asked", "read_object", "read_text"]

_SEEDS = 1 << 64  # what a generator of torch takes
_RANDOM_SEEDS = 1 << 32  # as the WebUI draws them
_SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})")
_LEAST_SIDE = 16  # pixels: of less, latents have no size in the middle of a UNet
_MOST_GUIDANCE = 100.0
_LONGEST_SHOWN = 80

Object = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """What a request for pictures asks: the prompt as it is read, and a row for each picture."""

    prompt: Prompt
    rows: tuple[Row, ...]


def read_object(body: bytes) -> Object:
    """Return the JSON object of a request's body; a field that is null is as one that is left out."""
    try:
        given = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body is no JSON: {_short(error)}", "bad_json") from error
    if not isinstance(given, dict):
        raise Refused(400, 'the body is no JSON object: send {"prompt": …}', "bad_json")
    return {name: value for name, value in given.items() if value is not None}


def read_asked(given: Object, limits: Limits, model: str, key: Callable[[], str]) -> Asked:
    """Return what a request asks; `key` gives each row a name that no other has. Refused for what cannot be."""
    readers = _readers(limits, model)
    if strange := sorted(given.keys() - readers.keys()):
        said = f"unknown: {_short(', '.join(strange))}; known are {', '.join(readers)}"
        raise Refused(400, said, "unknown_field", _short(strange[0]))
    read = {name: _read(readers[name], name, value) for name, value in given.items()}
    if "prompt" not in read:
        raise Refused(400, "there is no prompt: send a text, with tags such as <lora:ink:0.7>", "no_prompt", "prompt")
    width, height = read.get("size") or (None, None)
    seed = read.get("seed", secrets.randbelow(_RANDOM_SEEDS))
    rows = tuple(
        Row(
            key(),
            read["prompt"],
            read.get("negative_prompt", ""),
            (seed + index) % _SEEDS,
            width,
            height,
            read.get("steps"),
            read.get("guidance_scale"),
        )
        for index in range(read.get("n", 1))
    )
    return Asked(parse_prompt(read["prompt"]), rows)


def read_text(given: Object, name: str, limits: Limits) -> str:
    """Return a text of a request, "" where it is left out."""
    return str(_read(_text(limits.max_prompt), name, given.get(name, "")))


def check_names(asked: Asked, catalog: LoraCatalog) -> None:
    """Refuse the first tag that cannot be read or whose file cannot be had; may read the folders.

    A mask is a file too, and must lie in the folders.
    """
    prompt = asked.prompt
    for each in prompt.diagnostics:
        if each.severity == "error":
            hint = f" ({each.hint})" if each.hint else ""
            raise _of_tag(prompt, each.span[0], each.message + hint, "bad_tag")
    for tag in prompt.tags:
        try:
            for row in asked.rows[: None if is_wildcard(tag.name) else 1]:
                files_of(catalog, tag, seed=row.seed)
            _check_mask(tag, catalog)
        except CatalogError as error:
            candidates = list(error.candidates) or None
            said = placeless(str(error), catalog)
            raise _of_tag(prompt, tag.span[0], said, "unknown_lora", candidates=candidates) from error
        except LoraError as error:
            raise _of_tag(prompt, tag.span[0], placeless(str(error), catalog), "bad_file") from error


def _check_mask(tag: LoraTag, catalog: LoraCatalog) -> None:
    region = tag.conditions.region
    if region is not None and region.mask is not None:
        from lora_runtime.regions import find_place

        find_place(region, catalog.folders)  # `apply` would take one from the working folder too


def _of_tag(prompt: Prompt, position: int, message: str, code: str, **more: Any) -> Refused:
    line, column = line_and_column(prompt.source, position)
    said = f"line {line}, column {column}: {message}"
    return Refused(400, said, code, "prompt", line=line, column=column, **more)


def _readers(limits: Limits, model: str) -> Mapping[str, Callable[[Any], Any]]:
    """Return what reads each field. Of OpenAI's those that only choose among what is not here take the one value."""
    return {
        "prompt": _text(limits.max_prompt),
        "negative_prompt": _text(limits.max_prompt),
        "n": _whole(1, limits.max_n),
        "size": _size(limits.max_pixels),
        "seed": _whole(0, _SEEDS - 1),
        "steps": _whole(1, limits.max_steps),
        "guidance_scale": _guidance,
        "model": _only(model),
        "response_format": _only("b64_json"),
        "output_format": _only("png"),
        "quality": _only("auto"),
        "background": _only("auto"),
        "user": _text(limits.max_prompt),
    }


def _read(reader: Callable[[Any], Any], name: str, value: Any) -> Any:
    try:
        return reader(value)
    except ValueError as error:
        # Of a list in a list in a list … even its text may be too deep.
        shown = (
            repr(value)
            if isinstance(value, (str, int, float))
            else "a list"
            if isinstance(value, list)
            else "an object"
        )
        raise Refused(400, f"{name} is {_short(shown)}: {error}", "bad_value", name) from error


def _text(longest: int) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if not isinstance(value, str):
            raise ValueError("give a text")
        if len(value) > longest:
            raise ValueError(f"it has {len(value)} characters; {longest} are the most")
        if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
            raise ValueError("it has half of a character, or a NUL, in it")
        return value

    return read


def _whole(least: int, most: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValueError(f"give a whole number from {least} to {most}")
        return value

    return read


def _guidance(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= _MOST_GUIDANCE:
        raise ValueError(f"give a number from 0 to {_MOST_GUIDANCE:g}")
    return float(value)


def _size(most: int) -> Callable[[Any], tuple[int, int] | None]:
    def read(value: Any) -> tuple[int, int] | None:
        if value == "auto":
            return None
        match = _SIZE.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            raise ValueError('give WIDTHxHEIGHT in pixels, such as "512x768", or "auto"')
        width, height = int(match[1]), int(match[2])
        if min(width, height) < _LEAST_SIDE or width * height > most:
            side = math.isqrt(most)
            raise ValueError(f"sides are from {_LEAST_SIDE} pixels, and {most} pixels ({side}x{side}) are the most")
        return width, height

    return read


def _only(known: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value != known:
            raise ValueError(f'there is only "{known}" here')
        return known

    return read


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _short(text: object) -> str:
    return " ".join(str(text).split())[:_LONGEST_SHOWN]
