"""What a prompt means here, and which files there are: for people, as JSON. No torch, and nothing is painted."""

from __future__ import annotations

from typing import Any

from lora_runtime.catalog import Entry, LoraCatalog
from lora_runtime.errors import LoraError
from lora_runtime.prompt import Prompt
from lora_runtime.prompt.excerpt import line_and_column
from lora_runtime.prompt.writer import condition_fields
from lora_runtime.tag_files import files_of, names_to_draw
from lora_runtime.wildcards import candidates, is_wildcard

__all__ = ["explained", "listed", "placeless"]


def explained(prompt: Prompt, catalog: LoraCatalog) -> dict[str, Any]:
    """Return the clean text, what each tag says and which file it means, and what there is to say, by place."""
    tags = []
    for tag in prompt.tags:
        line, column = line_and_column(prompt.source, tag.span[0])
        said = {"tag": tag.raw, "name": tag.name, "line": line, "column": column}
        said |= {"te": f"{tag.te:g}", "unet": f"{tag.unet:g}", "conditions": list(condition_fields(tag))}
        try:
            if is_wildcard(tag.name) and (names := candidates(tag.name, names_to_draw(catalog.entries))):
                tags.append(said | {"file": None, "drawn_from": len(names), "error": None})
                continue
            files = [_file(entry) for _, entry in files_of(catalog, tag)]
            said |= {"file": files[0], "error": None, **({"files": files} if len(files) > 1 else {})}
        except LoraError as error:
            said |= {"file": None, "error": placeless(str(error), catalog)}
        tags.append(said)
    return {"text": prompt.text, "tags": tags, "diagnostics": diagnostics_of(prompt)}


def diagnostics_of(prompt: Prompt) -> list[dict[str, Any]]:
    """Return what there is to say of a prompt, with the places."""
    found = []
    for each in prompt.diagnostics:
        line, column = line_and_column(prompt.source, each.span[0])
        said = {"severity": each.severity, "line": line, "column": column}
        found.append({**said, "message": each.message, "hint": each.hint})
    return found


def placeless(text: str, catalog: LoraCatalog) -> str:
    """Return what a client may read of an error: folders by their names, and not where they lie on the disk."""
    for folder in catalog.folders:
        whole = folder.absolute()
        text = text.replace(str(whole), whole.name) if whole.name else text
    return text


def listed(catalog: LoraCatalog) -> dict[str, Any]:
    """Return the files of the folders as they are now, without where these lie; and those that cannot be used."""
    catalog.refresh()
    refused = [{"name": path.name, "reason": reason} for path, reason in catalog.refused.items()]
    return {"object": "list", "data": [_file(entry) for entry in catalog.entries], "refused": refused}


def _file(entry: Entry) -> dict[str, Any]:
    return {
        "id": entry.relative,
        "object": "lora",
        "name": entry.name,
        "alias": entry.alias,
        "family": entry.family,
        "algorithms": list(entry.algorithms),
        "ranks": list(entry.ranks),
        "bytes": entry.size,
    }
