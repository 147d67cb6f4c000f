"""bake: a checkpoint with LoRAs inside, to the bit what `apply` makes of the model with these tags.

Tensors go from file to file one at a time, in their own dtype and under their own names: W′ = round(W₀ + Σ sᵢ·Δᵢ(W₀)),
one sum and one rounding, by the same plan and the same arithmetic as a live model's.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from lora_runtime import __version__
from lora_runtime.errors import LoraFileError, NoMatchError
from lora_runtime.header import read_header
from lora_runtime.hosted import HostKeeper, HostPatch, host_patches
from lora_runtime.plan import make_plan
from lora_runtime.requests import Request, add_up
from lora_runtime.routes.storage import how_stored, scale_of
from lora_runtime.tensors import DTYPES
from lora_runtime.workbench.base_model import BaseModel, Stored, open_model
from lora_runtime.workbench.codes import codes_in
from lora_runtime.workbench.notes import MADE_FROM
from lora_runtime.workbench.progress import steps
from lora_runtime.workbench.requantise import Coding, Requantised
from lora_runtime.workbench.sources import Source, asked_of, idle_of, read_sources, strength_for
from lora_runtime.workbench.writing import Blank, check_free, write_stream

__all__ = ["Baked", "Requantised", "bake"]

_ASKED_FOR_NOTHING = "its strength is 0"
_STALE = ("modelspec.hash_sha256", "sshs_model_hash", "sshs_legacy_hash")


@dataclass(frozen=True)
class Baked:
    """A checkpoint that was written. `weights`: how many of its tensors the files changed.

    `used`: by file, how many of its keys had a place and a strength, and of how many; `unused` maps the reasons why
    others did nothing to their number. `requantised`: what rounding to codes has done, where weights are stored as
    codes.
    """

    path: Path
    size: int  # bytes
    sha256: str
    tensors: int
    weights: int
    used: Mapping[str, tuple[int, int]]
    unused: Mapping[str, int]
    notes: tuple[str, ...] = ()
    requantised: Requantised | None = None


def bake(
    checkpoint: str | os.PathLike[str],
    sources: Sequence[Source],
    out: str | os.PathLike[str],
    *,
    loras: Sequence[str | os.PathLike[str]] | None = None,
    requantise: bool = False,
    force: bool = False,
    progress: bool = False,
) -> Baked:
    """Write a checkpoint with the LoRAs of `sources` inside to `out`, and return what was changed.

    `checkpoint`: one safetensors file, a whole model in original names or one component of a pipeline. `sources`: a
    prompt with tags, files with strengths ("ink.safetensors:0.7@IN=0"), or Requests; names are looked up in `loras`.
    One tensor at a time is in memory, beside the LoRAs. `requantise`: weights in fp8, with or without a scale, and in
    nf4, fp4 and int8 as bitsandbytes stores them are rounded to codes anew; scales stay where they can.

    Raises LoraFileError where a file cannot be read or written, weights are stored in 8 bits or less and this is not
    asked for or not of a kind that it knows, or a strength varies; NoMatchError where no key of a file has a place;
    StrengthError where a weight would overflow its dtype.
    """
    path = check_free(out, force=force)
    source = Path(checkpoint)
    if source.is_dir():
        raise LoraFileError(f"{source}: this is a folder; give the one file with the weights, such as that in unet/")
    requests, of_tags = read_sources(sources, loras)
    if not requests:
        raise ValueError("there is nothing to bake: give a prompt with tags, or files")
    model = open_model(source, decoded=requantise)
    header = read_header(source)
    _check(requests, model, requantise)
    plan = make_plan(requests, model.targets, model.view.description)
    modules = [module for root in model.view.components.values() for module in root.modules()]
    keeper = HostKeeper(modules, lambda module, name: model.stored(_parameter(module, name)).read())
    patches: dict[str, HostPatch] = {
        model.stored(assignment.parameter).key: patch
        for assignment, patch in zip(plan.assignments, host_patches(plan.assignments, keeper), strict=True)
    }
    for report in plan.report.loras:
        if not report.used:
            reason = next(iter(report.unused.values()), "")
            raise NoMatchError(f"{report.path}: none of its {report.keys:,} keys has a place in {source}: {reason}")
    blanks, places = {}, {}
    for key, info in header.tensors.items():
        if info.dtype not in DTYPES:
            raise LoraFileError(f"{source}: {key} is stored as {info.dtype}, which this torch cannot read")
        blanks[key] = Blank(DTYPES[info.dtype], info.shape)
        places[key] = Stored(source, key, info)
    turns = steps([*blanks], "bake", show=progress)
    coding = Coding({key: each for key, each in codes_in(header).items() if key in patches}, patches)

    def tensor_of(key: str) -> Tensor:
        next(turns, None)
        if (found := coding.tensor(key)) is not None:
            return found
        tensor = places[key].read()
        return patches[key].merged(tensor) if key in patches else tensor

    file = write_stream(path, blanks, tensor_of, _notes(header.metadata, source, requests))
    unused = Counter(reason for report in plan.report.loras for reason in report.unused.values())
    used = {}
    for request, report in zip(add_up(requests), plan.report.loras, strict=True):
        idle = len(_idle_keys(request, model) - report.unused.keys())
        unused += Counter({_ASKED_FOR_NOTHING: idle})
        used[report.name] = report.used - idle, report.keys
    said = (*of_tags, *idle_of(requests, model), *_said(requests))
    done = coding.done if coding.done.codes else None
    return Baked(file.path, file.size, file.sha256, len(blanks), len(patches), used, dict(unused), said, done)


def _parameter(module: nn.Module, name: str) -> nn.Parameter:
    found = module._parameters[name]
    assert found is not None
    return found


def _check(requests: Sequence[Request], model: BaseModel, requantise: bool) -> None:
    """Check that each strength is a number, and that no weight would have to be made of codes anew."""
    stored: Counter[str] = Counter()
    for request in requests:
        for stem, adapters in request.lora.adapters.items():
            strength_for(request, stem, model)
            target = model.targets.find(stem)
            for place in () if target is None else target.places:
                for parameter in {adapter.parameter for adapter in adapters}:
                    role = place.role(parameter)
                    own = None if role is None else place.module._parameters.get(role[0])
                    if role is None or own is None:
                        continue
                    if scale_of(place.module, role[0]) is not None:
                        stored["codes with a scale"] += 1
                    elif (kind := how_stored(own)) is not None:
                        stored[kind] += 1
    if stored:
        (kind, _), *_ = stored.most_common(1)
        why = (
            "in a way that only its own library writes" if requantise else "and would have to be rounded to codes anew"
        )
        how = "" if requantise else ", or give --requantise (requantise=True)"
        raise LoraFileError(
            f"{model}: {sum(stored.values()):,} of the weights that would change are stored in 8 bits or less "
            f"({kind}), {why}: bake into the model in 16 bits, or keep the tags{how}"
        )


def _idle_keys(request: Request, model: BaseModel) -> set[str]:
    """Return the keys of modules for which a request asks for nothing, whether they have a place or not."""
    idle = [own for stem, own in request.lora.adapters.items() if strength_for(request, stem, model) == 0]
    return {key for adapters in idle for adapter in adapters for key in adapter.keys}


def _notes(metadata: Mapping[str, str], source: Path, requests: Sequence[Request]) -> dict[str, str]:
    files = [{"name": r.lora.name, "sha256": r.lora.sha256, **asked_of(r)} for r in requests]
    note = {"version": __version__, "verb": "bake", "checkpoint": source.name, "files": files}
    return {**{key: value for key, value in metadata.items() if key not in _STALE}, MADE_FROM: json.dumps(note)}


def _said(requests: Sequence[Request]) -> Iterator[str]:
    for request in requests:
        if request.lora.embeddings:
            words = ", ".join(request.lora.embeddings)
            yield f"{request.lora.name} brings words along ({words}); a checkpoint has no place for them"
