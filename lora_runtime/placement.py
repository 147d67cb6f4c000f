"""One file and a model's targets → which adapter changes what of which parameter, and why the rest changes nothing."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lora_runtime.adapters import Adapter, Rows
from lora_runtime.beside import reason_against
from lora_runtime.dialects import WHOLE, Part
from lora_runtime.lora import Lora
from lora_runtime.merge import Piece, region_of
from lora_runtime.routes import Route, layer_shape
from lora_runtime.targets import Target, Targets

__all__ = ["Placed", "Placement", "place_adapters"]


class Placed(NamedTuple):
    """One adapter of a file, the `number`-th of its stem, and the parameter, or the part of it, that it changes."""

    stem: str
    number: int
    adapter: Adapter
    target: Target
    name: str  # of the parameter in its module
    parameter: nn.Parameter | None  # None where the weight is computed, or kept under other names
    part: Part
    route: Route
    precise: Tensor | None = None  # W₀ in more digits than the parameter has, which a merge starts from
    pieces: tuple[Piece, ...] = ()


@dataclass(frozen=True, eq=False)
class Placement:
    """Where each adapter of a file goes, and for each key without a place the reason.

    `targets` counts the weights by component; `notes` counts the weights that a file fits only in a way worth telling.
    """

    placed: tuple[Placed, ...]
    unused: Mapping[str, str]
    used: int
    targets: Mapping[str, int]
    notes: Mapping[str, int]


def place_adapters(lora: Lora, targets: Targets) -> Placement:
    """Return where each adapter of a file goes; found out once while file and model are the same."""
    known: Placement | None = targets.known.get(lora)
    if known is None:
        known = targets.known[lora] = _place(lora, targets)
    return known


_ROLES = ("weight", "bias")


def _place(lora: Lora, targets: Targets) -> Placement:
    placed: list[Placed] = []
    unused = dict(lora.unused)
    notes: Counter[str] = Counter()
    taken: dict[object, list[tuple[Part, str]]] = {}  # by what is changed
    named = {target.component for target in map(targets.find, lora.adapters) if target is not None}
    twins: list[Placed] = []  # their keys count where the denoiser has them
    for stem, adapters in lora.adapters.items():
        target = targets.find(stem)
        reason = targets.reason(stem) if target is None else None
        for name in _ROLES:  # weights first: a bias without the change of its weight would be wrong
            group = [(index, adapter) for index, adapter in enumerate(adapters) if adapter.parameter == name]
            if not group:
                continue
            if target is not None and reason is None:
                found = _fit(target, name, [adapter for _, adapter in group], targets, taken)
                if not isinstance(found, str):
                    for index, adapter in group:
                        placed += _spread(stem, index, adapter, target, found, targets)
                    for spot in found:
                        taken.setdefault(spot.key, []).append((spot.part, stem))
                        notes.update([spot.note] if spot.note else [])
                    for twin in targets.twins(stem):
                        if twin.component not in named:
                            twins += _again(stem, name, group, twin, targets, taken, notes)
                    continue
                reason = found
            unused.update((key, reason or "") for _, adapter in group for key in adapter.keys)
    everywhere = (*placed, *twins)
    components = {(id(place.target.reference()), place.name): place.target.component for place in everywhere}
    return Placement(
        everywhere,
        unused,
        sum(len(place.adapter.keys) for place in placed),
        dict(Counter(components.values())),
        dict(notes),
    )


def _again(
    stem: str,
    name: str,
    group: Sequence[tuple[int, Adapter]],
    twin: Target,
    targets: Targets,
    taken: dict[object, list[tuple[Part, str]]],
    notes: Counter[str],
) -> Iterator[Placed]:
    """Yield adapters in the same place of another expert; a note says where they do not fit it."""
    found = _fit(twin, name, [adapter for _, adapter in group], targets, taken)
    if isinstance(found, str):
        notes.update([f"left out of {twin.component}: {found}"])
        return
    for spot in found:
        taken.setdefault(spot.key, []).append((spot.part, stem))
    for index, adapter in group:
        yield from _spread(stem, index, adapter, twin, found, targets)


class _Spot(NamedTuple):
    """The parameter that is the "weight" or "bias" of a place, and what of it."""

    name: str  # of the parameter in its module
    parameter: nn.Parameter | None
    part: Part
    route: Route
    shape: torch.Size  # of the part
    key: object  # equal for spots that change the same
    note: str = ""


def _spread(
    stem: str, number: int, adapter: Adapter, target: Target, spots: Sequence[_Spot], targets: Targets
) -> Iterator[Placed]:
    """Yield an adapter on its one spot, or its rows on each of several; its keys count with the first of them."""

    def placed(adapter: Adapter, place: Target, spot: _Spot, pieces: tuple[Piece, ...]) -> Placed:
        precise = targets.precise(place, spot.name)
        return Placed(stem, number, adapter, place, spot.name, spot.parameter, spot.part, spot.route, precise, pieces)

    whole = _stacked([spot.shape for spot in spots])
    adapter = adapter.for_shape(whole)
    if len(spots) == 1:
        yield placed(adapter, target, spots[0], _weight_of(target, targets) if adapter.needs_weight else ())
        return
    pieces: tuple[Piece, ...] = ()
    if adapter.base_dependent:
        pieces = tuple(
            Piece(spot.parameter, spot.part, targets.precise(place, spot.name), spot.route.base)
            for place, spot in zip(target.places, spots, strict=True)
        )
    start = 0
    for place, spot in zip(target.places, spots, strict=True):
        rows = Rows(adapter, whole, start, start + spot.shape[0], () if start else adapter.keys)
        yield placed(rows, place, spot, pieces)
        start = rows.stop


def _weight_of(target: Target, targets: Targets) -> tuple[Piece, ...]:
    """Return the weight beside a bias."""
    role = target.role("weight")
    if role is None:
        return ()
    name, part = role
    return (
        Piece(
            target.module._parameters.get(name), part, targets.precise(target, name), targets.route(target, name).base
        ),
    )


def _stacked(shapes: Sequence[torch.Size]) -> torch.Size:
    """Return the shape of weights of these shapes, one below the other."""
    return torch.Size((sum(shape[0] for shape in shapes), *shapes[0][1:]))


def _fit(
    target: Target,
    name: str,
    adapters: Sequence[Adapter],
    targets: Targets,
    taken: Mapping[object, Sequence[tuple[Part, str]]],
) -> list[_Spot] | str:
    """Return the spots that these adapters change, in the order of their rows, or the reason why there are none."""
    spots: list[_Spot] = []
    for place in target.places:
        spot = _spot(place, name, adapters, targets)
        if isinstance(spot, str):
            return spot if len(target.places) == 1 else f"{spot}: {place}"
        spots.append(spot)
    if len(spots) > 1 and any(adapter.needs_weight for adapter in adapters):
        return "for a bias that depends on one weight, where this model has several"
    if any(spot.shape[1:] != spots[0].shape[1:] for spot in spots):
        return f"for one weight, where this model has {' and '.join(str(tuple(spot.shape)) for spot in spots)}"
    reason = _misfit(adapters, _stacked([spot.shape for spot in spots]))
    if reason is not None and len(spots) == 1:
        fewer = _on_first_inputs(target, spots[0], adapters, targets)
        if fewer is not None:
            spots, reason = [fewer], None
    if reason is not None:
        return reason
    for spot in spots:
        for known, other in taken.get(spot.key, ()):
            if known.overlaps(spot.part):
                return f"for a {name} that {other} of the same file changes already"
    return spots


def _spot(place: Target, name: str, adapters: Sequence[Adapter], targets: Targets) -> _Spot | str:
    """Return the spot that is the "weight" or "bias" of a place, or the reason why it cannot be changed."""
    role = place.role(name)
    module = place.module
    if role is None or (name == "bias" and module._parameters.get(role[0]) is None):
        return "for a bias that this module does not have"
    own, part = role
    route = targets.route(place, own)
    if route.kind == "refused":
        return route.reason
    parameter = module._parameters.get(own)
    if route.kind == "beside":
        against = reason_against(module, own)
        if against is not None:
            way_out = f": {route.remedy}" if route.remedy else ""
            return f"for a weight that is {route.reason}, beside which it would have to act; {against}{way_out}"
        shape = layer_shape(module, own)
        if shape is None:
            return f"for a weight that is {route.reason}, whose shape its layer does not tell"
        # Embeddings that share a table are one place, as they are where it is merged.
        key: object = id(parameter) if isinstance(module, nn.Embedding) else (id(module), own)
    else:
        assert parameter is not None
        shape, key = parameter.shape, id(parameter)
    if shape[0] % part.count:
        return f"for {part} of the rows of a {name} that is {tuple(shape)}"
    here = shape if part is WHOLE else region_of(torch.empty(shape, device="meta"), part).shape
    return _Spot(own, parameter, part, route, here, key)


# The layers that a model's latents go in by: models that take more beside them (a mask, a picture, depth) have them
# behind the latents, so what was trained for the plain model means the first inputs. How many these are, the model's
# output tells: what it predicts is as deep as its latents.
_FIRST_LAYER = re.compile(
    r"(.*\.)?(conv_in|input_blocks\.0\.0|x_embedder(\.proj(_in)?)?|img_in(\.proj)?|patch_embedding|(pos|patch)_embed(\.proj)?)"
)


def _on_first_inputs(target: Target, spot: _Spot, adapters: Sequence[Adapter], targets: Targets) -> _Spot | None:
    """Return the first inputs of a model's first layer, where the adapters are for fewer than it has, or None."""
    shape = spot.shape
    if spot.part != WHOLE or len(shape) < 2 or _FIRST_LAYER.fullmatch(target.path) is None:
        return None
    for inputs in targets.latents(target):
        if inputs < shape[1] and _misfit(adapters, torch.Size((shape[0], inputs, *shape[2:]))) is None:
            note = f"{target.path}: acts on the first {inputs} of {shape[1]} inputs, those of the latents"
            return spot._replace(part=replace(WHOLE, inputs=inputs), note=note)
    return None


def _misfit(adapters: Sequence[Adapter], shape: torch.Size) -> str | None:
    misfits = (adapter.misfit(shape) for adapter in adapters)
    return next((misfit for misfit in misfits if misfit is not None), None)
