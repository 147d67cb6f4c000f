"""A picture's parameters as the WebUI writes them: prompt, negative prompt, and a line of "Key: value" pairs.

    a boat <lora:ink:0.7>
    Negative prompt: people
    Steps: 20, Sampler: Euler a, CFG scale: 7.0, Seed: 1, Size: 512x512, Lora hashes: "ink: 0123456789ab"

A value with a comma, a colon or a line break is in quotes, as JSON. The hashes are of the files' tensors, so that a
file is found under another name; the WebUI writes their first 12 digits.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lora_runtime.catalog import LoraCatalog
from lora_runtime.errors import CatalogError

__all__ = [
    "HASHES_FIELD",
    "Infotext",
    "additional_networks",
    "format_hashes",
    "infotext_of",
    "parse_hashes",
    "read_infotext",
    "rename",
]

HASHES_FIELD = "Lora hashes"
_NEGATIVE = "Negative prompt:"

# A tag of ours: kind, name, and the rest with its colon; a name may have anything in it but ":" and ">".
_TAG = re.compile(r"<(lora|lyco|loractl):([^:>]{1,255})(:[^>]{0,1024})?>")  # bounded: pictures are anybody's
_MODEL = re.compile(r"(.*?)\s*\(([0-9a-fA-F]+)\)\s*$", re.DOTALL)  # "ink(0123456789ab)", as additional-networks writes
_PAIR = re.compile(r'\s*(\w[\w \-/]{0,63}):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')
_LEAST_PAIRS = 3  # a last line with fewer is the prompt's, as the WebUI reads it, unless it is plainly ours
_SHOWN_DIGITS = 12
_NAMES = {  # a pipeline's names for what the WebUI has
    "num_inference_steps": "Steps",
    "guidance_scale": "CFG scale",
    "seed": "Seed",
    "strength": "Denoising strength",
    "clip_skip": "Clip skip",
}
_PLAIN = frozenset({*_NAMES.values(), "Size", "Sampler", "Schedule type", "Model", "Model hash", "VAE", "Version"})
_USER_COMMENT, _EXIF = 0x9286, 0x8769
_ENCODINGS = {b"UNICODE\0": "utf-16-be", b"ASCII\0\0\0": "ascii"}
_LONGEST = 1 << 16  # characters of the last line


@dataclass(frozen=True)
class Infotext:
    """What a picture says of itself. Tags in the prompts have the names that the files have here.

    `loras` is by the name in the prompt as it was written: the file's digits of a hash, "" where the picture has none.
    """

    prompt: str
    negative_prompt: str
    parameters: Mapping[str, str]
    loras: Mapping[str, str]


def read_infotext(picture: Any, loras: Any = None) -> Infotext:
    """Return the parameters in a picture: a path, a picture of Pillow's, or the text itself if it has a line break.

    `loras` as for `apply`: where a file there has the hash of a tag, the tag gets its name. ValueError where the
    picture has no parameters, OSError where it cannot be read.
    """
    text = picture if isinstance(picture, str) and "\n" in picture else _text_of(picture)
    prompt, negative, parameters = _parts(text)
    hashes = parse_hashes(parameters.get(HASHES_FIELD, ""))
    tags = additional_networks(parameters)
    prompt = "\n".join(filter(None, [prompt, tags]))
    names = [match[2] for match in _TAG.finditer(prompt + negative)]
    found = {name: hashes.get(_plain(name), "") for name in names}
    if any(found.values()):
        from lora_runtime.lookup import catalog_for

        catalog = catalog_for(loras)

        def local_name(digits: str) -> str | None:
            return _name_of(catalog, digits)

        prompt, negative = rename(prompt, hashes, local_name), rename(negative, hashes, local_name)
    return Infotext(prompt, negative, parameters, found)


def infotext_of(
    prompt: str, negative_prompt: str, parameters: Mapping[str, Any], hashes: Mapping[str, str] | None = None
) -> str:
    """Return the text. `parameters` have a pipeline's names, or the WebUI's with `_` for blanks.

    The WebUI itself reads the last line only where it has three or more of them.
    """
    fields: dict[str, Any] = {}
    width, height = parameters.get("width"), parameters.get("height")
    for key, value in parameters.items():
        if key not in ("width", "height") and value is not None:
            fields[_NAMES.get(key, key.replace("_", " "))] = value
    if width and height:
        fields["Size"] = f"{width}x{height}"
    if hashes:
        fields[HASHES_FIELD] = format_hashes({name: digits[:_SHOWN_DIGITS] for name, digits in hashes.items()})
    lines = [prompt, f"{_NEGATIVE} {negative_prompt}" if negative_prompt else ""]
    lines.append(", ".join(f"{key}: {_quoted(str(value))}" for key, value in fields.items()))
    return "\n".join(filter(None, lines))


def format_hashes(hashes: Mapping[str, str]) -> str:
    """Return "name: hash, …", the names without what separates: `:` and `,`."""
    return ", ".join(f"{_plain(name)}: {digits}" for name, digits in hashes.items())


def parse_hashes(text: str) -> dict[str, str]:
    """Return the hashes by plain name; what is none is left out."""
    found = {}
    for part in text.split(","):
        name, colon, digits = part.rpartition(":")
        if colon and re.fullmatch(r"[0-9a-fA-F]{8,64}", digits.strip()):
            found[_plain(name)] = digits.strip().lower()
    return found


def rename(prompt: str, hashes: Mapping[str, str], local_name: Callable[[str], str | None]) -> str:
    """Return the prompt with the name of each tag as the files here have it.

    `hashes` is by plain name, as `parse_hashes` gives it; `local_name` returns the tag's name for a hash, or None where
    no file here has it: then the tag stays as it is.
    """

    def renamed(match: re.Match[str]) -> str:
        digits = hashes.get(_plain(match[2]))
        name = local_name(digits) if digits else None
        return f"<{match[1]}:{name}{match[3] or ''}>" if name else match[0]

    return _TAG.sub(renamed, prompt)


def additional_networks(fields: Mapping[str, str]) -> str:
    """Return tags for the LoRAs that sd-webui-additional-networks wrote into a picture's parameters; "" for none.

    Its fields are "AddNet Module 1" (LoRA), "AddNet Model 1" (name and hash) and "AddNet Weight A 1" (UNet) and
    "AddNet Weight B 1" (text encoder).
    """
    tags = []
    for key in fields:
        number = key.removeprefix("AddNet Model ")
        if number == key or fields.get(f"AddNet Module {number}") != "LoRA" or not fields[key]:
            continue
        match = _MODEL.fullmatch(fields[key])
        name = match[1] if match else fields[key]
        if name in ("", "None"):
            continue
        unet = str(fields.get(f"AddNet Weight A {number}", "1.0"))
        te = str(fields.get(f"AddNet Weight B {number}", unet))
        tags.append(f"<lora:{name}:{unet}>" if te == unet else f"<lora:{name}:te={te}:unet={unet}>")
    return "".join(tags)


def _parts(text: str) -> tuple[str, str, dict[str, str]]:
    """Return prompt, negative prompt and the pairs of the last line."""
    *lines, last = text.strip().split("\n")
    pairs = {match[1].strip(): _unquoted(match[2]) for match in _PAIR.finditer(last[:_LONGEST])}
    if len(pairs) < _LEAST_PAIRS and not (pairs and (HASHES_FIELD in pairs or pairs.keys() <= _PLAIN)):
        lines, pairs = [*lines, last], {}
    start = next((index for index, line in enumerate(lines) if line.strip().startswith(_NEGATIVE)), len(lines))
    negative = "\n".join(lines[start:]).strip().removeprefix(_NEGATIVE)
    return "\n".join(lines[:start]).strip(), negative.strip(), pairs


def _text_of(picture: Any) -> str:
    """Return the text in a picture: a PNG's chunk `parameters`, or the comment of a JPEG or WebP."""
    from PIL import Image

    opened = Image.open(picture) if isinstance(picture, (str, os.PathLike)) else picture
    try:
        text = opened.info.get("parameters")
        if text is None:
            comment = opened.getexif().get_ifd(_EXIF).get(_USER_COMMENT)
            if isinstance(comment, bytes):
                text = comment[8:].decode(_ENCODINGS.get(comment[:8], "utf-8"), errors="replace")
    finally:
        if opened is not picture:
            opened.close()
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{picture}: has no parameters in it, as the WebUI writes them into a picture")
    return text


def _name_of(catalog: LoraCatalog, digits: str) -> str | None:
    """Return the name of the file with this hash, None where none, or several, have it."""
    try:
        return catalog.resolve(f"#{digits}", suggest=False).name
    except CatalogError:
        return None


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if any(mark in value for mark in ',:\n"') else value


def _unquoted(value: str) -> str:
    if value[:1] == value[-1:] == '"' and len(value) > 1:
        try:
            return str(json.loads(value))
        except ValueError:
            return value[1:-1]
    return value.strip()


def _plain(name: str) -> str:
    return name.replace(":", "").replace(",", "").strip()
