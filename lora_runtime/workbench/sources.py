"""What a merge is made of, as people write it: files with strengths, or a prompt with tags.

    ink.safetensors             strength 1
    ink.safetensors:0.7         text encoders and denoiser at 0.7
    ink.safetensors:0.7@IN=0    and none of it in the input blocks: whatever a tag takes after its strength
    "<lora:ink:0.7:IN=0>"       a tag, or several; names are looked up as a prompt would have them

A file has one strength for each module, so what depends on the step, the image or the place is refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lora_runtime.catalog import LoraCatalog
from lora_runtime.dialects import component_of
from lora_runtime.errors import LoraFileError
from lora_runtime.folder import SUFFIX
from lora_runtime.lora import load_lora
from lora_runtime.prompt import LoraTag, parse_prompt
from lora_runtime.requests import Request, request_of
from lora_runtime.workbench.base_model import Model
from lora_runtime.workbench.kept import path_of_name

__all__ = ["Source", "asked_of", "read_sources", "strength_for"]

Source = str | os.PathLike[str] | Request
_FIELDS = (":", "@")  # what may stand between a path and its strength, and between a strength and the next field


def read_sources(sources: Sequence[Source], loras: Sequence[str | os.PathLike[str]] | None = None) -> list[Request]:
    """Return what is asked of each file, in order; a file that is named twice is read once.

    `loras`: folders in which names are looked up, those of `LoraCatalog.default()` unless given. Raises TagSyntaxError
    where a tag or a strength cannot be read, CatalogError where a name means no file, and what `load_lora` raises.
    """
    known: dict[Path, Any] = {}
    catalog: LoraCatalog | None = None
    found: list[Request] = []
    for source in sources:
        if isinstance(source, Request):
            found.append(source)
            continue
        for name, tag in _tags(os.fspath(source)):
            path = _as_file(name)
            if path is None:
                catalog = catalog or (LoraCatalog(*loras) if loras else LoraCatalog.default())
                path = catalog.resolve(name).path
            if path not in known:
                known[path] = load_lora(path)
            found.append(request_of(tag, known[path]))
    return found


def strength_for(request: Request, stem: str, model: Model | None) -> float:
    """Return what a request asks of a module by its name in the file; LoraFileError where that is no one number.

    With a model, block weights go by the module's own path; without, by what its name tells of its block.
    """
    target = None if model is None else model.targets.find(stem)
    if target is not None:
        component, path = target.component, target.path
    else:
        component, path = component_of(stem) or "unet", path_of_name(stem)
    blocks = request.conditions.blocks
    if blocks is not None and blocks.random and request.seed is None:
        raise LoraFileError(f"{request.lora.path}: its block weights are drawn at random; a file has one: give numbers")
    strength = request.strength(component, path)
    if isinstance(strength, float | int):
        return float(strength)
    raise LoraFileError(
        f"{request.lora.path}: its strength depends on the step, the image or the place; a file has one for each "
        "module: give a number, and block weights"
    )


def asked_of(request: Request) -> dict[str, Any]:
    """Return the strengths of a request for the note of what a file was made from."""
    asked: dict[str, Any] = {"te": request.te, "unet": request.unet}
    if request.dyn is not None:
        asked["dyn"] = request.dyn
    if request.conditions.blocks is not None:
        asked["blocks"] = [str(rule) for rule in request.conditions.blocks.rules]
    return asked


def _tags(source: str) -> Iterator[tuple[str, LoraTag]]:
    """Yield the name or path, and the tag with its strengths, of each file that a source names."""
    if "<" in source and (tags := parse_prompt(source, strict=True).tags):
        yield from ((tag.name, tag) for tag in tags)
        return
    path, fields = _split(source)
    (tag,) = parse_prompt(f"<lora:file{fields}>", strict=True).tags
    yield path, tag


def _split(source: str) -> tuple[str, str]:
    """Return a path and what follows it, as the fields of a tag. Of paths with colons the longest counts."""
    ends = [place for place, char in enumerate(source) if char in _FIELDS]
    if ends[:1] == [1] and source[2:3] in ("/", "\\"):  # a drive of Windows
        del ends[0]
    for end in (len(source), *reversed(ends)):
        if _as_file(source[:end]) is not None:
            break
    else:  # a name, up to its strength
        end = ends[0] if ends else len(source)
    rest = source[end:].replace("@", ":")
    return source[:end], rest


def _as_file(name: str) -> Path | None:
    """Return the path of a file, or of a folder that PEFT has saved, by its name with or without the suffix."""
    for path in (Path(name), Path(name + SUFFIX)):
        if path.is_file() or (path.is_dir() and any(path.glob(f"*{SUFFIX}"))):
            return path
    return None
