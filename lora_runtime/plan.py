"""Tags + adapters + a model's targets → what goes where, at which strength, and what does not and why."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lora_runtime.adapters import Adapter, Rows
from lora_runtime.dialects import WHOLE, Part
from lora_runtime.live import LiveModule, LiveTerm, reason_against
from lora_runtime.merge import Piece, Term, region_of
from lora_runtime.prompt.strength import Strength
from lora_runtime.requests import BEFORE, Request, add_up
from lora_runtime.stage import Side, Varying
from lora_runtime.targets import Target, Targets

__all__ = ["NO_PLACE", "RUNS_ONCE", "Assignment", "LoraReport", "Plan", "Report", "make_plan"]


@dataclass(frozen=True, slots=True)
class Assignment:
    """All terms of one parameter. `identity` is equal only where the same files meet at the same strengths."""

    target: Target
    parameter: nn.Parameter
    terms: tuple[Term, ...]
    identity: tuple[object, ...]
    precise: Tensor | None = None  # W₀ in more digits than the parameter has, which the sum starts from


@dataclass(frozen=True, slots=True)
class LoraReport:
    """What became of one file: `unused` maps each key that found no place to the reason.

    `live` is how many of its weights have a strength that varies; `fixed` maps reasons why a strength could not vary,
    with what came of it, to how many weights.
    """

    name: str
    path: str
    sha256: str
    te: Strength
    unet: Strength
    keys: int
    used: int
    targets: Mapping[str, int]  # component → number of its weights that this file changes
    unused: Mapping[str, str] = field(repr=False)
    live: int = 0
    fixed: Mapping[str, int] = field(default_factory=dict)
    images: frozenset[int] | None = None
    side: Side | None = None

    def __str__(self) -> str:
        """Return one line: strengths, coverage, places, and the reasons with their counts."""
        strength = f"{self.te:g}" if self.te == self.unet else f"te {self.te:g}, unet {self.unet:g}"
        line = f"{self.name} × {strength}"
        if self.images is not None:
            line += f" in image {', '.join(str(image + 1) for image in sorted(self.images))}"
        if self.side is not None:
            line += f" on the {self.side} side"
        line += f": {self.used} of {self.keys} keys"
        if self.targets:
            line += " on " + ", ".join(f"{count} weights of {name}" for name, count in self.targets.items())
        if self.live:
            line += f", {self.live} of them live"
        for reason, count in Counter(self.unused.values()).most_common(_REASONS):
            line += (
                f"; {count} {'is' if count == 1 else 'are'} {reason}"
                if reason.startswith("for ")
                else (f"; {count} unused: {reason}")
            )
        more = len(set(self.unused.values())) - _REASONS
        return line + (f"; and {more} more reasons in .unused" if more > 0 else "")


_REASONS = 3  # a line stays readable; all of them are in LoraReport.unused


@dataclass(frozen=True, slots=True)
class Report:
    """What an apply did: a line for each file, and how many weights are patched."""

    loras: tuple[LoraReport, ...] = ()
    weights: int = 0
    bytes: int = 0
    model: str = ""
    live: int = 0  # modules beside which adapters act, with strengths that vary

    def __str__(self) -> str:
        """Return the report as text, a line for each file."""
        if not self.loras:
            return "no LoRA applied"
        head = f"{self.weights} weights patched ({self.bytes / 1e6:.1f} MB) in {self.model}"
        if self.live:
            head += f", {self.live} modules with a strength that varies"
        return "\n".join([head, *(f"  {lora}" for lora in self.loras)])


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do to a model: each parameter at most once, in the order of the model."""

    assignments: tuple[Assignment, ...]
    report: Report
    lives: tuple[LiveModule, ...] = ()


def make_plan(requests: Sequence[Request], targets: Targets, model: str = "") -> Plan:
    """Return the plan for these files on these targets.

    Files are summed in the order of their content hashes, so the order of the tags cannot change a bit; the same file
    asked for twice adds up. What is constant goes into the weights, what varies beside the modules.
    """
    merged: dict[int, _Merged] = {}
    live: dict[int, _Live] = {}
    places: dict[str, tuple[list[_Placed], dict[str, str]]] = {}
    reports = []
    for request in add_up(requests):
        sha256 = request.lora.sha256
        if sha256 not in places:
            places[sha256] = _place(request, targets)
        placed, unused = places[sha256]
        varying, fixed = 0, Counter[str]()
        for place in placed:
            strength, reason = _settled(request, place)
            if reason is not None:
                fixed[reason] += 1
            if strength == 0:
                continue
            identity = (sha256, place.stem, place.number, strength, request.dyn, place.part)
            if isinstance(strength, Varying):
                varying += 1
                live.setdefault(id(place.target.module), _Live(place.target)).add(
                    place.name, LiveTerm(place.adapter, strength, request.dyn, place.part, place.pieces), identity
                )
            else:
                merged.setdefault(id(place.parameter), _Merged(place.target, place.parameter)).add(
                    Term(place.adapter, strength, request.dyn, place.part, place.pieces), identity
                )
        reports.append(_report(request, placed, unused, varying, fixed))
    assignments = tuple(
        Assignment(m.target, m.parameter, tuple(m.terms), tuple(m.identity), _precise(targets, m.target, m.parameter))
        for m in merged.values()
    )
    lives = tuple(
        LiveModule(
            found.target.component,
            found.target.module,
            MappingProxyType({name: tuple(terms) for name, terms in found.terms.items()}),
            tuple(found.identity),
        )
        for found in live.values()
    )
    size = sum(a.parameter.numel() * a.parameter.element_size() for a in assignments)
    return Plan(assignments, Report(tuple(reports), len(assignments), size, model, len(lives)), lives)


@dataclass(slots=True)
class _Merged:
    """What is constant on one parameter."""

    target: Target
    parameter: nn.Parameter
    terms: list[Term] = field(default_factory=list)
    identity: list[object] = field(default_factory=list)

    def add(self, term: Term, identity: object) -> None:
        self.terms.append(term)
        self.identity.append(identity)


@dataclass(slots=True)
class _Live:
    """What varies beside one module."""

    target: Target
    terms: dict[str, list[LiveTerm]] = field(default_factory=dict)
    identity: list[object] = field(default_factory=list)

    def add(self, name: str, term: LiveTerm, identity: object) -> None:
        self.terms.setdefault(name, []).append(term)
        self.identity.append((name, identity))


# Layers of the denoiser that see the text, the time or the size of the picture: diffusers' names, and the originals'.
_NO_PLACE = re.compile(
    r"attn2\.to_[kv]\b|add_[kqv]_proj|to_add_out|ff_context|context_block|context_embedder|norm1_context|txt_|time_|"
    r"timestep_|emb_layers|label_emb|add_embedding|adaLN|modulation|_mod\b|norm\d?\.linear|norm_out\.linear|vector_in"
)


# Why a strength does not vary that nobody would expect to: worth a note, and no warning.
NO_PLACE = "it reads text or time, which have no place in the picture; left out"
RUNS_ONCE = "a text encoder runs once, before the first step; the first value counts throughout"


def _settled(request: Request, place: _Placed) -> tuple[float | Varying, str | None]:
    """Return the strength at a place; where one that varies cannot act there, one that can and the reason."""
    component, path = place.target.component, place.target.path
    strength = request.strength(component, path)
    once = RUNS_ONCE if component.startswith("text_encoder") and request.scheduled(component, path) else None
    if not isinstance(strength, Varying):
        beside = strength != 0 and _unfit(place.parameter) is not None
        return Varying(strength) if beside else strength, once
    reason = reason_against(place.target.module, place.name)
    if reason is not None:
        # What is meant for some rows or places alone must not act on the others.
        value = 0.0 if strength.by_row or strength.place is not None else strength.at(BEFORE)
        return value, f"{reason}; {'the first value counts throughout' if value else 'left out'}"
    if strength.place is not None and _NO_PLACE.search(path):
        return 0.0, NO_PLACE
    return strength, once


def _beside(target: Target, targets: Targets) -> tuple[Piece, ...]:
    """Return the weight beside a bias."""
    role = target.role("weight")
    weight = None if role is None else target.module._parameters.get(role[0])
    return () if role is None or weight is None else (Piece(weight, role[1], _precise(targets, target, weight)),)


def _precise(targets: Targets, target: Target, parameter: nn.Parameter) -> Tensor | None:
    """Return W₀ as the host keeps it beside a parameter of 8 bits, or None where the parameter is all there is."""
    if parameter.element_size() > 1:
        return None
    name = next(name for name, own in target.module._parameters.items() if own is parameter)
    values = targets.precise(target, name)
    return values if values is not None and values.shape == parameter.shape else None


_ROLES = ("weight", "bias")


class _Placed(NamedTuple):
    """One adapter of a file, the `number`-th of its stem, and the parameter, or the part of it, that it changes."""

    stem: str
    number: int
    adapter: Adapter
    target: Target
    name: str  # of the parameter in its module
    parameter: nn.Parameter
    part: Part
    pieces: tuple[Piece, ...] = ()


def _place(request: Request, targets: Targets) -> tuple[list[_Placed], dict[str, str]]:
    """Return where each adapter of a file goes, and for each key without a place the reason."""
    placed: list[_Placed] = []
    unused = dict(request.lora.unused)
    taken: dict[int, list[tuple[Part, str]]] = {}  # by id(parameter)
    for stem, adapters in request.lora.adapters.items():
        target = targets.find(stem)
        reason = targets.reason(stem) if target is None else None
        for name in _ROLES:  # weights first: a bias without the change of its weight would be wrong
            group = [(index, adapter) for index, adapter in enumerate(adapters) if adapter.parameter == name]
            if not group:
                continue
            if target is not None and reason is None:
                found = _fit(target, name, [adapter for _, adapter in group], taken)
                if not isinstance(found, str):
                    for index, adapter in group:
                        placed += _spread(stem, index, adapter, target, found, targets)
                    for _, parameter, part in found:
                        taken.setdefault(id(parameter), []).append((part, stem))
                    continue
                reason = found
            unused.update((key, reason or "") for _, adapter in group for key in adapter.keys)
    return placed, unused


_Spot = tuple[str, nn.Parameter, Part]  # the parameter's name in its module, the parameter, what of it


def _spread(
    stem: str, number: int, adapter: Adapter, target: Target, spots: Sequence[_Spot], targets: Targets
) -> Iterator[_Placed]:
    """Yield an adapter on its one spot, or its rows on each of several; its keys count with the first of them."""
    if len(spots) == 1:
        yield _Placed(
            stem, number, adapter, target, *spots[0], _beside(target, targets) if adapter.needs_weight else ()
        )
        return
    shapes = [_shape(place, parameter, part) for place, (_, parameter, part) in zip(target.places, spots, strict=True)]
    whole = _stacked(shapes)
    pieces: tuple[Piece, ...] = ()
    if adapter.base_dependent:
        pieces = tuple(
            Piece(parameter, part, _precise(targets, place, parameter))
            for place, (_, parameter, part) in zip(target.places, spots, strict=True)
        )
    start = 0
    for place, shape, spot in zip(target.places, shapes, spots, strict=True):
        rows = Rows(adapter, whole, start, start + shape[0], () if start else adapter.keys)
        yield _Placed(stem, number, rows, place, *spot, pieces)
        start = rows.stop


def _stacked(shapes: Sequence[torch.Size]) -> torch.Size:
    """Return the shape of weights of these shapes, one below the other."""
    return torch.Size((sum(shape[0] for shape in shapes), *shapes[0][1:]))


def _fit(
    target: Target, name: str, adapters: Sequence[Adapter], taken: Mapping[int, Sequence[tuple[Part, str]]]
) -> list[_Spot] | str:
    """Return what of which parameters these adapters change, in the order of their rows, or the reason why none."""
    spots: list[_Spot] = []
    for place in target.places:
        spot = _spot(place, name, adapters)
        if isinstance(spot, str):
            return spot if len(target.places) == 1 else f"{spot}: {place}"
        spots.append(spot)
    if len(spots) > 1 and any(adapter.needs_weight for adapter in adapters):
        return "for a bias that depends on one weight, where this model has several"
    shapes = [_shape(place, parameter, part) for place, (_, parameter, part) in zip(target.places, spots, strict=True)]
    if any(shape[1:] != shapes[0][1:] for shape in shapes):
        return f"for one weight, where this model has {' and '.join(str(tuple(shape)) for shape in shapes)}"
    reason = _misfit(adapters, _stacked(shapes))
    (own, parameter, part), *others = spots
    if reason is not None and not others and _takes_a_mask(parameter) and part == WHOLE:
        part = replace(part, inputs=_LATENT_CHANNELS)
        if _misfit(adapters, region_of(parameter.data, part).shape) is None:
            spots, reason = [(own, parameter, part)], None
    if reason is not None:
        return reason
    for _, parameter, part in spots:
        for known, other in taken.get(id(parameter), ()):
            if known.overlaps(part):
                return f"for a {name} that {other} of the same file changes already"
    return spots


def _shape(place: Target, parameter: nn.Parameter, part: Part) -> torch.Size:
    """Return the shape of a part of a weight; a quantised one may be stored in another than its layer has."""
    module = place.module
    if isinstance(module, nn.Linear) and place.parameter == "weight" and parameter is module._parameters["weight"]:
        return region_of(torch.empty(module.out_features, module.in_features, device="meta"), part).shape
    return region_of(parameter.data, part).shape


def _spot(place: Target, name: str, adapters: Sequence[Adapter]) -> _Spot | str:
    """Return what of which parameter is the "weight" or "bias" of a place, or the reason why it cannot be changed."""
    role = place.role(name)
    parameter = None if role is None else place.module._parameters.get(role[0])
    if role is None or (parameter is None and name == "bias"):
        return "for a bias that this module does not have"
    reason = _unfit(parameter)
    if parameter is None or (reason is not None and not _acts_beside(place.module, name, adapters)):
        return reason or ""
    part = role[1]
    if reason is None and parameter.shape[0] % part.count:
        return f"for {part} of the rows of a {name} that is {tuple(parameter.shape)}"
    return role[0], parameter, part


_LATENT_CHANNELS = 4
_WITH_A_MASK = 9  # the latent, the mask and the masked latent, in this order


def _takes_a_mask(parameter: nn.Parameter) -> bool:
    """Return whether this is the first convolution of an inpainting model; adapters for the plain one fit it too."""
    return parameter.ndim == 4 and parameter.shape[1] == _WITH_A_MASK


def _misfit(adapters: Sequence[Adapter], shape: torch.Size) -> str | None:
    misfits = (adapter.misfit(shape) for adapter in adapters)
    return next((misfit for misfit in misfits if misfit is not None), None)


def _unfit(parameter: nn.Parameter | None) -> str | None:
    """Return why a parameter cannot be patched by rewriting its weight, or None where it can."""
    if parameter is None:
        return "for a module whose weight is computed, not stored (a parametrization)"
    if parameter.is_meta:
        return (
            "for a weight that is offloaded piece by piece (meta device), beside which only low-rank adapters of "
            "linear layers act: use enable_model_cpu_offload instead"
        )
    if not parameter.is_floating_point() or type(parameter.data) is not torch.Tensor:
        return (
            f"for a weight stored as {_storage_name(parameter)}, which is never rewritten, and beside which only "
            "low-rank adapters of linear layers act"
        )
    return None


def _acts_beside(module: nn.Module, name: str, adapters: Sequence[Adapter]) -> bool:
    """Return whether adapters can act beside a weight whose values cannot be read or written."""
    return name == "weight" and isinstance(module, nn.Linear) and all(a.factors() is not None for a in adapters)


def _storage_name(parameter: nn.Parameter) -> str:
    """Return how a quantised weight is stored, in words for a reason."""
    kind = type(parameter.data).__name__
    return str(parameter.dtype).removeprefix("torch.") if kind == "Tensor" else kind


def _report(
    request: Request, placed: Sequence[_Placed], unused: dict[str, str], live: int, fixed: Mapping[str, int]
) -> LoraReport:
    """Return the report of one file."""
    parameters = {id(place.parameter): place.target.component for place in placed}
    return LoraReport(
        name=request.lora.name,
        path=str(request.lora.path),
        sha256=request.lora.sha256,
        te=request.te,
        unet=request.unet,
        keys=request.lora.key_count,
        used=sum(len(place.adapter.keys) for place in placed),
        targets=dict(Counter(parameters.values())),
        unused=unused,
        live=live,
        fixed=dict(fixed),
        images=request.images,
        side=request.side,
    )
