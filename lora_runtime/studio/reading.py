"""A picture's parameters, as the studio and the WebUI write them, back into settings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_runtime.catalog import LoraCatalog
from lora_runtime.infotext import read_infotext
from lora_runtime.studio.faults import StudioError
from lora_runtime.studio.samplers import SAMPLERS

__all__ = ["read_picture", "settings_in"]

_FIELDS = {"steps": ("Steps", int), "guidance": ("CFG scale", float), "seed": ("Seed", int)}


def read_picture(path: str | Path, loras: LoraCatalog) -> dict[str, Any]:
    """Return what a picture says of itself, by the names of `Settings`; what it does not say is not there.

    Tags get the names that the files have here. StudioError for a picture without parameters.
    """
    from PIL import Image

    try:
        said = read_infotext(Path(path), loras)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise StudioError(
            "this picture has no parameters in it: take a PNG as the studio or the WebUI has saved it"
        ) from error
    return {"prompt": said.prompt, "negative": said.negative_prompt, **settings_in(said.parameters)}


def settings_in(parameters: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings among parameters; a number that cannot be read, or an unknown sampler, is left out."""
    found: dict[str, Any] = {}
    for name, (field, kind) in _FIELDS.items():
        try:
            found[name] = kind(parameters[field])
        except (KeyError, ValueError):
            continue
    if size := re.fullmatch(r"(\d{1,5})x(\d{1,5})", parameters.get("Size", "")):
        found |= {"width": int(size[1]), "height": int(size[2])}
    schedule = parameters.get("Schedule type", "")
    for sampler in (f"{parameters.get('Sampler')} {schedule}", parameters.get("Sampler", "")):
        if sampler in SAMPLERS:
            found["sampler"] = sampler
            break
    return found
