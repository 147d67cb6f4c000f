"""Which modules of several files are the same: by their names, or by their places in a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from lora_runtime.dialects import DENOISERS, without_prefix
from lora_runtime.errors import LoraFileError
from lora_runtime.requests import Request
from lora_runtime.workbench.base_model import Model
from lora_runtime.workbench.changes import Change, changes_of
from lora_runtime.workbench.sources import strength_for

__all__ = ["Module", "Part", "check_families", "matched_modules"]


@dataclass(frozen=True, eq=False)
class Part:
    """What one file has for a module, and the strength that is asked for there."""

    request: Request
    strength: float
    change: Change


@dataclass
class Module:
    """What all files have for one parameter; the first file's names and keys are those of the new one."""

    parts: list[Part] = field(default_factory=list)


def check_families(requests: Sequence[Request]) -> None:
    known = [request.lora for request in requests if request.lora.family != "unknown"]
    for lora in known[1:]:
        if lora.family != known[0].family:
            raise LoraFileError(
                f"{lora.path}: made for {lora.family}, and {known[0].path} for {known[0].family}: no file is for both"
            )


def matched_modules(requests: Sequence[Request], model: Model | None) -> list[Module]:
    """Return what all files have, module by module, in the order of the first file that has one."""
    found: dict[tuple[str, str], Module] = {}
    names: list[set[str]] = []
    for request in requests:
        own: set[str] = set()
        for change in changes_of(request.lora, model):
            name = _name(change.stem, model)
            own.add(name)
            module = found.setdefault((name, change.parameter), Module())
            if any(part.request is request for part in module.parts):
                raise LoraFileError(f"{request.lora.path}: has the module {change.stem} under two names")
            module.parts.append(Part(request, strength_for(request, change.stem, model), change))
        names.append(own)
    _check_overlap(requests, names, model)
    return [*found.values()]


def _name(stem: str, model: Model | None) -> str:
    """Return what is equal for names of the same module: its place in the model, or the name without its prefix."""
    place = None if model is None else model.place(stem)
    if place is not None:
        return place
    component, rest = without_prefix(stem)
    return f"{'denoiser' if component is None or component in DENOISERS else component}.{rest}"


def _check_overlap(requests: Sequence[Request], names: Sequence[set[str]], model: Model | None) -> None:
    """Check that files for the same component name its modules alike: else one file would have each module twice."""
    for index in range(1, len(requests)):
        for before in range(index):
            for component in {_component(name) for name in names[index]} & {_component(name) for name in names[before]}:
                own, other = (
                    {name for name in each if _component(name) == component} for each in (names[index], names[before])
                )
                if not own & other and model is None:
                    raise LoraFileError(
                        f"{requests[index].lora.path}: names none of the modules of its {component} as "
                        f"{requests[before].lora.path} does; if both are for the same model, give it, so that they are "
                        "matched: --model DIR or FILE (model=…)"
                    )
    places = set().union(*names)
    fused = {piece for name in places if " + " in name for piece in name.split(" + ")}
    if fused & places:
        raise LoraFileError(f"{min(fused & places)}: one file changes it by itself, and another fused with others")


def _component(name: str) -> str:
    return name.partition(".")[0]
