"""Tags + adapters + a model's targets → what goes where, at which strength, and what does not and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lora_runtime.adapters import Adapter, Rows
from lora_runtime.dialects import WHOLE, Part
from lora_runtime.lora import Lora
from lora_runtime.merge import Piece, Term, region_of
from lora_runtime.targets import Target, Targets

__all__ = ["Assignment", "LoraReport", "Plan", "Report", "Request", "make_plan"]


@dataclass(frozen=True, slots=True)
class Request:
    """One file and the strengths asked for: `te` for text encoders, `unet` for the denoiser."""

    lora: Lora
    te: float
    unet: float
    dyn: int | None = None
    span: tuple[int, int] = (0, 0)  # of its tag in the prompt

    def strength(self, component: str) -> float:
        """Return the strength for a component, by its diffusers name."""
        return self.te if component.startswith("text_encoder") else self.unet


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
    """What became of one file: `unused` maps each key that found no place to the reason."""

    name: str
    path: str
    sha256: str
    te: float
    unet: float
    keys: int
    used: int
    targets: Mapping[str, int]  # component → number of its weights that this file changes
    unused: Mapping[str, str] = field(repr=False)

    def __str__(self) -> str:
        """Return one line: strengths, coverage, places, and the reasons with their counts."""
        strength = f"{self.te:g}" if self.te == self.unet else f"te {self.te:g}, unet {self.unet:g}"
        line = f"{self.name} × {strength}: {self.used} of {self.keys} keys"
        if self.targets:
            line += " on " + ", ".join(f"{count} weights of {name}" for name, count in self.targets.items())
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

    def __str__(self) -> str:
        """Return the report as text, a line for each file."""
        if not self.loras:
            return "no LoRA applied"
        head = f"{self.weights} weights patched ({self.bytes / 1e6:.1f} MB) in {self.model}"
        return "\n".join([head, *(f"  {lora}" for lora in self.loras)])


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do to a model: each parameter at most once, in the order of the model."""

    assignments: tuple[Assignment, ...]
    report: Report


def make_plan(requests: Sequence[Request], targets: Targets, model: str = "") -> Plan:
    """Return the plan for these files on these targets.

    Files are summed in the order of their content hashes, so the order of the tags cannot change a bit; the same file
    asked for twice adds up.
    """
    terms: dict[int, list[tuple[Target, nn.Parameter, Term, tuple[object, ...]]]] = {}
    reports = []
    for request in _add_up(requests):
        placed, unused = _place(request, targets)
        reports.append(_report(request, placed, unused))
        for place in placed:
            strength = request.strength(place.target.component)
            if strength == 0:
                continue
            identity = (request.lora.sha256, place.stem, place.number, strength, request.dyn, place.part)
            term = Term(place.adapter, strength, request.dyn, place.part, place.pieces)
            terms.setdefault(id(place.parameter), []).append((place.target, place.parameter, term, identity))
    assignments = tuple(
        Assignment(
            found[0][0],
            found[0][1],
            tuple(f[2] for f in found),
            tuple(f[3] for f in found),
            _precise(targets, found[0][0], found[0][1]),
        )
        for found in terms.values()
    )
    size = sum(a.parameter.numel() * a.parameter.element_size() for a in assignments)
    return Plan(assignments, Report(tuple(reports), len(assignments), size, model))


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


def _add_up(requests: Sequence[Request]) -> Iterator[Request]:
    """Yield one request for each file and `dyn`, its strengths summed, in the order of content hashes."""
    groups: dict[tuple[str, bool, int], list[Request]] = {}
    for request in requests:
        groups.setdefault((request.lora.sha256, request.dyn is not None, request.dyn or 0), []).append(request)
    for _, same in sorted(groups.items()):
        # sorted: a float sum must not depend on the order of the tags either
        te, unet = sum(sorted(r.te for r in same)), sum(sorted(r.unet for r in same))
        yield Request(same[0].lora, te, unet, same[0].dyn)


_ROLES = ("weight", "bias")


class _Placed(NamedTuple):
    """One adapter of a file, the `number`-th of its stem, and the parameter, or the part of it, that it changes."""

    stem: str
    number: int
    adapter: Adapter
    target: Target
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
                    for parameter, part in found:
                        taken.setdefault(id(parameter), []).append((part, stem))
                    continue
                reason = found
            unused.update((key, reason or "") for _, adapter in group for key in adapter.keys)
    return placed, unused


_Spot = tuple[nn.Parameter, Part]


def _spread(
    stem: str, number: int, adapter: Adapter, target: Target, spots: Sequence[_Spot], targets: Targets
) -> Iterator[_Placed]:
    """Yield an adapter on its one spot, or its rows on each of several; its keys count with the first of them."""
    if len(spots) == 1:
        yield _Placed(
            stem, number, adapter, target, *spots[0], _beside(target, targets) if adapter.needs_weight else ()
        )
        return
    shapes = [region_of(parameter.data, part).shape for parameter, part in spots]
    whole = _stacked(shapes)
    pieces: tuple[Piece, ...] = ()
    if adapter.base_dependent:
        pieces = tuple(
            Piece(parameter, part, _precise(targets, place, parameter))
            for place, (parameter, part) in zip(target.places, spots, strict=True)
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
        spot = _spot(place, name)
        if isinstance(spot, str):
            return spot if len(target.places) == 1 else f"{spot}: {place}"
        spots.append(spot)
    if len(spots) > 1 and any(adapter.needs_weight for adapter in adapters):
        return "for a bias that depends on one weight, where this model has several"
    shapes = [region_of(parameter.data, part).shape for parameter, part in spots]
    if any(shape[1:] != shapes[0][1:] for shape in shapes):
        return f"for one weight, where this model has {' and '.join(str(tuple(shape)) for shape in shapes)}"
    reason = _misfit(adapters, _stacked(shapes))
    (parameter, part), *others = spots
    if reason is not None and not others and _takes_a_mask(parameter) and part == WHOLE:
        part = replace(part, inputs=_LATENT_CHANNELS)
        if _misfit(adapters, region_of(parameter.data, part).shape) is None:
            spots, reason = [(parameter, part)], None
    if reason is not None:
        return reason
    for parameter, part in spots:
        for known, other in taken.get(id(parameter), ()):
            if known.overlaps(part):
                return f"for a {name} that {other} of the same file changes already"
    return spots


def _spot(place: Target, name: str) -> _Spot | str:
    """Return what of which parameter is the "weight" or "bias" of a place, or the reason why it cannot be changed."""
    role = place.role(name)
    parameter = None if role is None else place.module._parameters.get(role[0])
    if role is None or (parameter is None and name == "bias"):
        return "for a bias that this module does not have"
    reason = _unfit(parameter)
    if parameter is None or reason is not None:
        return reason or ""
    part = role[1]
    if parameter.shape[0] % part.count:
        return f"for {part} of the rows of a {name} that is {tuple(parameter.shape)}"
    return parameter, part


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
        return "for a weight that is offloaded piece by piece (meta device): use enable_model_cpu_offload instead"
    if not parameter.is_floating_point() or type(parameter.data) is not torch.Tensor:
        return f"for a weight stored as {_storage_name(parameter)}, which is never rewritten"
    return None


def _storage_name(parameter: nn.Parameter) -> str:
    """Return how a quantised weight is stored, in words for a reason."""
    kind = type(parameter.data).__name__
    return str(parameter.dtype).removeprefix("torch.") if kind == "Tensor" else kind


def _report(request: Request, placed: Sequence[_Placed], unused: dict[str, str]) -> LoraReport:
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
    )
