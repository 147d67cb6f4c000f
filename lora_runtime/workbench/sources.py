"""What a merge is made of, as people write it: files with strengths, or a prompt with tags.

    ink.safetensors             strength 1
    ink.safetensors:0.7         text encoders and denoiser at 0.7
    ink.safetensors:0.7@IN=0    and none of it in the input blocks: whatever a tag takes after its strength
    "<lora:ink:0.7:IN=0>"       a tag, or several; names are looked up as a prompt would have them

A file has one strength for each module, so what depends on the step, the image or the place is refused. What else of
a tag means nothing here is said.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lora_runtime.blocks import UNET, block_of
from lora_runtime.catalog import LoraCatalog
from lora_runtime.dialects import component_of
from lora_runtime.errors import LoraFileError, UnknownLoraError
from lora_runtime.folder import SUFFIX
from lora_runtime.lora import load_lora
from lora_runtime.prompt import Diagnostic, LoraTag, Prompt, parse_prompt
from lora_runtime.prompt.block_weights import BlockWeights
from lora_runtime.requests import Request, request_of
from lora_runtime.sets import Sets, parse_with_sets, read_sets
from lora_runtime.workbench.base_model import Model
from lora_runtime.workbench.kept import path_of_name

__all__ = ["Source", "asked_of", "idle_of", "read_sources", "strength_for"]

Source = str | os.PathLike[str] | Request
_LIST = 12  # numbers that the shortest list of block weights has
_FIELDS = (":", "@")  # what may stand between a path and its strength, and between a strength and the next field


def read_sources(
    sources: Sequence[Source], loras: Sequence[str | os.PathLike[str]] | None = None
) -> tuple[list[Request], list[str]]:
    """Return what is asked of each file, in order, and what there is to say of the tags; a file is read once.

    A set in a prompt stands for its tags. `loras`: folders in which names are looked up, those of
    `LoraCatalog.default()` unless given. Raises TagSyntaxError where a tag or a strength cannot be read, CatalogError
    where a name means no file, and what `load_lora` raises.
    """
    known: dict[Path, Any] = {}
    catalog: LoraCatalog | None = None
    found: list[Request] = []
    said: list[str] = []

    def folders() -> LoraCatalog:
        nonlocal catalog
        catalog = catalog or (LoraCatalog(*loras) if loras else LoraCatalog.default())
        return catalog

    for source in sources:
        if isinstance(source, Request):
            found.append(source)
            continue
        named, prompt = _tags(os.fspath(source), lambda: read_sets(*folders().folders))
        said += [_with_hint(each) for each in prompt.diagnostics if each.severity != "info"]
        said += [f"{other.raw} is no LoRA: it is left out" for other in prompt.others if other.kind != "set"]
        for name, tag in named:
            path = _as_file(name)
            if path is None:
                path = _in_folders(name, folders())
            if path not in known:
                known[path] = load_lora(path)
            found.append(request_of(tag, known[path]))
    return found, said


def _in_folders(name: str, catalog: LoraCatalog) -> Path:
    try:
        return catalog.resolve(name).path
    except UnknownLoraError:
        if Path(name).is_absolute():
            raise LoraFileError(f"{name}: there is no such file; correct the path") from None
        raise


def _with_hint(said: Diagnostic) -> str:
    return f"{said.message} ({said.hint})" if said.hint else said.message


def strength_for(request: Request, stem: str, model: Model | None) -> float:
    """Return what a request asks of a module by its name in the file; LoraFileError where that is no one number.

    With a model, block weights go by the module's own path; without, by what its name tells of its block.
    """
    component, path = _place(stem, model)
    blocks = request.conditions.blocks
    if blocks is not None and blocks.random and request.seed is None:
        raise LoraFileError(f"{request.lora.path}: its block weights are drawn at random; a file has one: give numbers")
    strength = request.strength(component, path)
    # A region is looked up for a picture, which a file has none of: the strength by itself does not know it.
    in_region = request.conditions.region is not None and strength != 0 and not component.startswith("text_encoder")
    if isinstance(strength, float | int) and not in_region:
        return float(strength)
    raise LoraFileError(
        f"{request.lora.path}: its strength depends on the step, the image or the place; a file has one for each "
        "module: give a number, and block weights"
    )


def _place(stem: str, model: Model | None) -> tuple[str, str]:
    """Return the component and path that a file's name for a module means, in the model or as the name tells."""
    target = None if model is None else model.targets.find(stem)
    return (component_of(stem) or "unet", path_of_name(stem)) if target is None else (target.component, target.path)


def idle_of(requests: Sequence[Request], model: Model | None) -> Iterator[str]:
    """Yield what of requests changes nothing: strengths of a second pass, denoisers and blocks that are not there."""
    for request in requests:
        name, conditions = request.lora.name, request.conditions
        second = (conditions.hires_te, request.te), (conditions.hires_unet, request.unet)
        if any(hires not in (None, first) for hires, first in second):
            yield f'"{name}" has strengths for a second pass (hr=): a file has one, that of the first pass'
        places = (_place(stem, None)[0] for stem in request.lora.adapters)
        has = dict.fromkeys(places) if model is None else model.view.components
        if conditions.expert not in (None, *has):
            none = f"no {'module of the file' if model is None else 'part of this model'} is called that"
            yield f'"{name}" is for the denoiser "{conditions.expert}", and {none}: there is {", ".join(has)}'
        if conditions.blocks is not None and (idle := _idle_blocks(request, conditions.blocks, model)):
            yield f'"{name}": no module of the file is meant by {", ".join(idle)}'


def _idle_blocks(request: Request, weights: BlockWeights, model: Model | None) -> list[str]:
    """Return what of block weights no module of the file is meant by, as the tag may have it.

    A list is for the blocks of a large model, and a file need not have them all: of a list all must be idle, but for
    those of text, which all models have.
    """
    places = [_place(stem, model) for stem in request.lora.adapters]
    blocks = {path: block_of(component, path) for component, path in places}
    parts = (("in=", weights.inner, "IN"), ("mid=", weights.mid, "M00"), ("out=", weights.outer, "OUT"))
    has = tuple(block for block in blocks.values() if block in UNET)
    idle = [word for word, own, of in parts if own is not None and not any(block.startswith(of) for block in has)]
    unmet = [rule.where for rule in weights.rules if not any(rule.holds(b, path) for path, b in blocks.items())]
    if len(weights.rules) < _LIST:
        return idle + unmet
    of_text = {rule.where for rule in weights.rules if rule.holds("BASE", "") or rule.holds("T5", "")}
    return (
        [*idle, "its list of block weights"] if {rule.where for rule in weights.rules} <= {*unmet, *of_text} else idle
    )


def asked_of(request: Request) -> dict[str, Any]:
    """Return the strengths of a request for the note of what a file was made from."""
    asked: dict[str, Any] = {"te": request.te, "unet": request.unet}
    if request.dyn is not None:
        asked["dyn"] = request.dyn
    if request.conditions.blocks is not None:
        asked["blocks"] = [str(rule) for rule in request.conditions.blocks.rules]
    return asked


def _tags(source: str, sets: Sets) -> tuple[list[tuple[str, LoraTag]], Prompt]:
    """Return the name or path and the tag of each file that a source names, and how its text was read."""
    if "<" in source and (prompt := parse_with_sets(source, sets, strict=True)).tags:
        return [(tag.name, tag) for tag in prompt.tags], prompt
    path, fields = _split(source)
    prompt = parse_prompt(f"<lora:file{fields}>", strict=True)
    (tag,) = prompt.tags
    return [(path, tag)], prompt


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
