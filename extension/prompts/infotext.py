"""A picture's parameters as text: the hashes of its LoRAs, and prompts pasted from pictures of others."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

HASHES_FIELD = "Lora hashes"

# A tag of ours: kind, name, and the rest with its colon; a name may have anything in it but ":" and ">".
_TAG = re.compile(r"<(lora|lyco|loractl):([^:>]+)(:[^>]*)?>")
_MODEL = re.compile(r"(.*?)\s*\(([0-9a-fA-F]+)\)\s*$", re.DOTALL)  # "ink(0123456789ab)", as additional-networks writes


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


def _plain(name: str) -> str:
    return name.replace(":", "").replace(",", "").strip()
