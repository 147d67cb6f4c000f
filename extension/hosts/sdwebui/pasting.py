"""Prompts pasted from a picture: names become those of the files here, by their hashes."""

from __future__ import annotations

from typing import Any

from modules import scripts

from lora_runtime.infotext import HASHES_FIELD, additional_networks, parse_hashes, rename

from ...library.patience import Patience
from ...library.shelf import Shelf
from .settings import INFOTEXT, Settings

_PROMPTS = ("Prompt", "Hires prompt")


def paste(fields: dict[str, Any], shelf: Shelf, settings: Settings) -> None:
    """Mend the prompts in the fields of an infotext, in place."""
    patience = Patience()
    hashes = parse_hashes(str(fields.get(HASHES_FIELD) or ""))

    def local_name(digits: str) -> str | None:
        entry = shelf.hashes.find(digits, patience)
        return None if entry is None else shelf.tag_name(entry, settings.prefer_alias)

    if "Steps" in fields:  # the parameters of a picture, and not just a prompt
        for field, (_, usual) in INFOTEXT.items():
            fields.setdefault(field, usual)
    if hashes:
        for key in _PROMPTS:
            if fields.get(key):
                fields[key] = rename(fields[key], hashes, local_name)
    if not _additional_networks_is_here():
        tags = additional_networks(fields)
        if tags:
            fields["Prompt"] = "\n".join(filter(None, [fields.get("Prompt", ""), tags]))


def _additional_networks_is_here() -> bool:
    """Return whether that extension is installed: it then reads its fields itself."""
    runner = scripts.scripts_txt2img
    return "AddNet Module 1" in [name for _, name in getattr(runner, "infotext_fields", None) or []]
