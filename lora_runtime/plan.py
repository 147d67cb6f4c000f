"""Tags + adapters + a model's targets → what goes where, at which strength, and what does not and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

from torch import Tensor, nn

from lora_runtime.beside import LiveModule, LiveTerm, dense_bytes, reason_against
from lora_runtime.families import has_no_place
from lora_runtime.limits import NO_PLACE, Limits
from lora_runtime.merge import Term
from lora_runtime.placement import Placed, Placement, place_adapters
from lora_runtime.report import LoraReport, Report
from lora_runtime.requests import BEFORE, Request, add_up
from lora_runtime.stage import Varying
from lora_runtime.targets import Target, Targets

__all__ = ["RUNS_ONCE", "Assignment", "Plan", "count_by_images", "key_of", "make_plan"]


@dataclass(frozen=True, slots=True)
class Assignment:
    """All terms of one parameter. `identity` is equal only where the same files meet at the same strengths."""

    target: Target
    parameter: nn.Parameter
    terms: tuple[Term, ...]
    identity: tuple[object, ...]
    precise: Tensor | None = None  # W₀ in more digits than the parameter has, which the sum starts from


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do to a model: each parameter at most once, in the order of the model."""

    assignments: tuple[Assignment, ...]
    report: Report
    lives: tuple[LiveModule, ...] = ()
    key: object = None  # equal only where the same is planned again for the same targets; None: it is not known


def key_of(requests: Sequence[Request]) -> object:
    """Return what is equal only for the same files in memory, asked for in the same way."""
    return tuple((r.lora, r.te, r.unet, r.dyn, r.conditions, r.images, r.side, r.place, r.seed) for r in requests)


def make_plan(requests: Sequence[Request], targets: Targets, model: str = "", limits: Limits | None = None) -> Plan:
    """Return the plan for these files on these targets.

    `limits`: where on this model a strength cannot vary; None where nothing but the names of its layers is known.

    Files are summed in the order of their content hashes, so the order of the tags cannot change a bit; the same file
    asked for twice adds up. What is constant goes into the weights, what varies beside the modules.
    """
    merged: dict[int, _Merged] = {}
    live: dict[int, _Live] = {}
    reports = []
    for request in add_up(requests):
        placement = place_adapters(request.lora, targets)
        strengths = _Strengths(request, limits)
        found = _Found()
        sha256, dyn = request.lora.sha256, request.dyn
        for place in placement.placed:
            strength, reason = strengths.at(place)
            if reason is not None:
                found.fixed[reason] += 1
            if strength == 0:
                continue
            identity = (sha256, place.stem, place.number, strength, dyn, place.part)
            if isinstance(strength, Varying):
                found.count_beside(place, strength)
                term = LiveTerm(place.adapter, strength, dyn, place.part, place.pieces)
                for module in (place.target.module, *targets.same_tables(place.target, place.name)):
                    live.setdefault(id(module), _Live(place.target, module)).add(place, term, identity)
                continue
            found.merged += 1
            key = id(place.parameter)
            if key not in merged:
                merged[key] = _Merged(place, [], [])
            merged[key].terms.append(Term(place.adapter, strength, dyn, place.part, place.pieces))
            merged[key].identity.append(identity)
        reports.append(_report(request, placement, found))
    assignments = tuple(
        Assignment(m.place.target, m.place.parameter, tuple(m.terms), tuple(m.identity), m.place.precise)
        for m in merged.values()
        if m.place.parameter is not None
    )
    lives = tuple(one.module_of(merged, targets) for one in live.values())
    size = sum(a.parameter.numel() * a.parameter.element_size() for a in assignments)
    # Where a strength cannot vary is asked anew: a pipeline may be set otherwise meanwhile.
    known_by = None if limits is None or limits.asked else key_of(requests)
    report = Report(tuple(reports), len(assignments), size, model, len(lives), live_of=count_by_images(lives))
    return Plan(assignments, report, lives, known_by)


def count_by_images(lives: Sequence[LiveModule]) -> dict[frozenset[int] | None, int]:
    """Return beside how many modules adapters act, by the images of a batch that these are for; None: all images."""
    return dict(Counter(_images_of(live) for live in lives))


def _images_of(live: LiveModule) -> frozenset[int] | None:
    found = [term.strength.images for terms in live.terms.values() for term in terms]
    return frozenset[int]().union(*(images for images in found if images)) if None not in found else None


class _Merged(NamedTuple):
    """What is constant on one parameter."""

    place: Placed
    terms: list[Term]
    identity: list[object]


@dataclass(slots=True)
class _Live:
    """What acts beside one module."""

    target: Target
    module: nn.Module
    terms: dict[str, list[LiveTerm]] = field(default_factory=dict)
    identity: list[object] = field(default_factory=list)
    bases: dict[str, Callable[[], Tensor]] = field(default_factory=dict)

    def add(self, place: Placed, term: LiveTerm, identity: object) -> None:
        self.terms.setdefault(place.name, []).append(term)
        self.identity.append((place.name, identity))
        if place.route.base is not None:
            self.bases[place.name] = place.route.base

    def module_of(self, merged: Mapping[int, object], targets: Targets) -> LiveModule:
        parameters = self.module._parameters
        if self.bases and "bias" not in self.bases and parameters.get("bias") is not None:
            kept = targets.route(self.target, "bias").base  # an offloader has the bias too
            if kept is not None:
                self.bases["bias"] = kept
        return LiveModule(
            self.target.component,
            self.module,
            MappingProxyType({name: tuple(terms) for name, terms in self.terms.items()}),
            tuple(self.identity),
            MappingProxyType(self.bases),
            frozenset(name for name in self.terms if id(parameters.get(name)) not in merged),
        )


@dataclass(slots=True)
class _Found:
    """What becomes of one request."""

    merged: int = 0
    live: int = 0
    beside: Counter[str] = field(default_factory=Counter)
    dense: int = 0
    fixed: Counter[str] = field(default_factory=Counter)
    deltas: set[object] = field(default_factory=set)  # the dense ones counted: parts of a weight share one

    def count_beside(self, place: Placed, strength: Varying) -> None:
        if place.route.kind == "beside":
            self.beside[place.route.reason] += 1
        self.live += 1
        size = dense_bytes(place.target.module, place.name, place.adapter, place.part)
        delta = id(place.target.module), place.name, strength
        if size and delta not in self.deltas:
            self.deltas.add(delta)
            self.dense += size


# Why a strength does not vary that nobody would expect to: worth a note, and no warning.
RUNS_ONCE = "a text encoder runs once, before the first step; the first value counts throughout"


class _Strengths:
    """The strengths of one request; asked once for a component where blocks do not matter."""

    def __init__(self, request: Request, limits: Limits | None) -> None:
        self._request = request
        self._limits = limits
        self._by_component: dict[str, tuple[float | Varying, str | None]] = {}

    def at(self, place: Placed) -> tuple[float | Varying, str | None]:
        """Return the strength at a place; where one that varies cannot act there, one that can and the reason."""
        component, path = place.target.component, place.target.path
        if self._request.conditions.blocks is not None:
            asked = self._asked(component, path)
        else:
            known = self._by_component.get(component)
            asked = self._by_component[component] = self._asked(component, "") if known is None else known
        strength, once = asked
        if isinstance(strength, Varying):
            return _settled(strength, place, once, self._limits)
        if strength != 0 and place.route.kind == "beside":
            return Varying(strength), once
        return asked

    def _asked(self, component: str, path: str) -> tuple[float | Varying, str | None]:
        text = component.startswith("text_encoder")
        once = RUNS_ONCE if text and self._request.scheduled(component, path) else None
        return self._request.strength(component, path), once


def _settled(
    strength: Varying, place: Placed, once: str | None, limits: Limits | None
) -> tuple[float | Varying, str | None]:
    """Return what of a strength that varies can act at a place, and the reason where that is not all."""
    reason = reason_against(place.target.module, place.name)
    if reason is not None:
        # What is meant for some rows or places alone must not act on the others.
        value = 0.0 if strength.by_row or strength.place is not None else strength.at(BEFORE)
        return value, f"{reason}; {'the first value counts throughout' if value else 'left out'}"
    component, path = place.target.component, place.target.path
    if limits is not None:
        unknown = limits.reason(component, path, strength)
    else:
        unknown = NO_PLACE if strength.place is not None and has_no_place(None, path) else None
    return (strength, once) if unknown is None else (0.0, unknown)


def _meant(request: Request, targets: Mapping[str, int]) -> dict[str, int]:
    """Return the weights by component without those of the experts that the tag is not for."""
    expert = request.conditions.expert
    return {name: count for name, count in targets.items() if expert in (None, name) or name.startswith("text_encoder")}


def _report(request: Request, placement: Placement, found: _Found) -> LoraReport:
    """Return the report of one file."""
    return LoraReport(
        name=request.lora.name,
        path=str(request.lora.path),
        sha256=request.lora.sha256,
        te=request.te,
        unet=request.unet,
        keys=request.lora.key_count,
        used=placement.used,
        targets=_meant(request, placement.targets),
        unused=placement.unused,
        live=found.live,
        fixed=dict(found.fixed),
        images=request.images,
        side=request.side,
        merged=found.merged,
        beside=dict(found.beside),
        dense_bytes=found.dense,
        notes=placement.notes,
    )
