"""Tags + adapters + a model's targets → what goes where, at which strength, and what does not and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from torch import Tensor, nn

from lora_runtime.beside import LiveModule, LiveTerm, reason_against
from lora_runtime.families import has_no_place
from lora_runtime.limits import NO_PLACE, Limits
from lora_runtime.merge import Term
from lora_runtime.placement import Placed, place_adapters, precise_of, unfit
from lora_runtime.report import LoraReport, Report
from lora_runtime.requests import BEFORE, Request, add_up
from lora_runtime.stage import Varying
from lora_runtime.targets import Target, Targets

__all__ = ["NO_PLACE", "RUNS_ONCE", "Assignment", "Plan", "make_plan"]


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


def make_plan(requests: Sequence[Request], targets: Targets, model: str = "", limits: Limits | None = None) -> Plan:
    """Return the plan for these files on these targets.

    `limits`: where on this model a strength cannot vary; None where who calls the model says what its calls are about.

    Files are summed in the order of their content hashes, so the order of the tags cannot change a bit; the same file
    asked for twice adds up. What is constant goes into the weights, what varies beside the modules.
    """
    merged: dict[int, _Merged] = {}
    live: dict[int, _Live] = {}
    places: dict[str, tuple[list[Placed], dict[str, str]]] = {}
    reports = []
    for request in add_up(requests):
        sha256 = request.lora.sha256
        if sha256 not in places:
            places[sha256] = place_adapters(request, targets)
        placed, unused = places[sha256]
        varying, fixed = 0, Counter[str]()
        for place in placed:
            strength, reason = _settled(request, place, limits)
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
        Assignment(m.target, m.parameter, tuple(m.terms), tuple(m.identity), precise_of(targets, m.target, m.parameter))
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


# Why a strength does not vary that nobody would expect to: worth a note, and no warning.
RUNS_ONCE = "a text encoder runs once, before the first step; the first value counts throughout"


def _settled(request: Request, place: Placed, limits: Limits | None = None) -> tuple[float | Varying, str | None]:
    """Return the strength at a place; where one that varies cannot act there, one that can and the reason."""
    component, path = place.target.component, place.target.path
    strength = request.strength(component, path)
    once = RUNS_ONCE if component.startswith("text_encoder") and request.scheduled(component, path) else None
    if not isinstance(strength, Varying):
        beside = strength != 0 and unfit(place.parameter) is not None
        return Varying(strength) if beside else strength, once
    reason = reason_against(place.target.module, place.name)
    if reason is not None:
        # What is meant for some rows or places alone must not act on the others.
        value = 0.0 if strength.by_row or strength.place is not None else strength.at(BEFORE)
        return value, f"{reason}; {'the first value counts throughout' if value else 'left out'}"
    if limits is not None:
        unknown = limits.reason(component, path, strength)
    else:
        unknown = NO_PLACE if strength.place is not None and has_no_place(None, path) else None
    return (strength, once) if unknown is None else (0.0, unknown)


def _report(
    request: Request, placed: Sequence[Placed], unused: dict[str, str], live: int, fixed: Mapping[str, int]
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
