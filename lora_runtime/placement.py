"""One file and a model's targets → which adapter changes what of which parameter, and why the rest changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lora_runtime.adapters import Adapter, Rows
from lora_runtime.dialects import WHOLE, Part
from lora_runtime.merge import Piece, region_of
from lora_runtime.requests import Request
from lora_runtime.targets import Target, Targets

__all__ = ["Placed", "place_adapters", "precise_of", "unfit"]


def _beside(target: Target, targets: Targets) -> tuple[Piece, ...]:
    """Return the weight beside a bias."""
    role = target.role("weight")
    weight = None if role is None else target.module._parameters.get(role[0])
    return () if role is None or weight is None else (Piece(weight, role[1], precise_of(targets, target, weight)),)


def precise_of(targets: Targets, target: Target, parameter: nn.Parameter) -> Tensor | None:
    """Return W₀ as the host keeps it beside a parameter of 8 bits, or None where the parameter is all there is."""
    if parameter.element_size() > 1:
        return None
    name = next(name for name, own in target.module._parameters.items() if own is parameter)
    values = targets.precise(target, name)
    return values if values is not None and values.shape == parameter.shape else None


_ROLES = ("weight", "bias")


class Placed(NamedTuple):
    """One adapter of a file, the `number`-th of its stem, and the parameter, or the part of it, that it changes."""

    stem: str
    number: int
    adapter: Adapter
    target: Target
    name: str  # of the parameter in its module
    parameter: nn.Parameter
    part: Part
    pieces: tuple[Piece, ...] = ()


def place_adapters(request: Request, targets: Targets) -> tuple[list[Placed], dict[str, str]]:
    """Return where each adapter of a file goes, and for each key without a place the reason."""
    placed: list[Placed] = []
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
) -> Iterator[Placed]:
    """Yield an adapter on its one spot, or its rows on each of several; its keys count with the first of them."""
    if len(spots) == 1:
        yield Placed(stem, number, adapter, target, *spots[0], _beside(target, targets) if adapter.needs_weight else ())
        return
    shapes = [_shape(place, parameter, part) for place, (_, parameter, part) in zip(target.places, spots, strict=True)]
    whole = _stacked(shapes)
    pieces: tuple[Piece, ...] = ()
    if adapter.base_dependent:
        pieces = tuple(
            Piece(parameter, part, precise_of(targets, place, parameter))
            for place, (_, parameter, part) in zip(target.places, spots, strict=True)
        )
    start = 0
    for place, shape, spot in zip(target.places, shapes, spots, strict=True):
        rows = Rows(adapter, whole, start, start + shape[0], () if start else adapter.keys)
        yield Placed(stem, number, rows, place, *spot, pieces)
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
    reason = unfit(parameter)
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


def unfit(parameter: nn.Parameter | None) -> str | None:
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
