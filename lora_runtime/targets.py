"""A live model → its modules, by every name that a file can have for them."""

from __future__ import annotations

import math
import re
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from lora_runtime.dialects import (
    ANY,
    DENOISERS,
    WHOLE,
    Part,
    component_of,
    denoiser_of,
    fused,
    normalise,
    prefixes,
    spellings,
    unwrapped,
)
from lora_runtime.pipelines import ModelView
from lora_runtime.routes import Facts, Look, Route, Seen, fused_parts, route_of, stands_for_weight

__all__ = ["Target", "Targets", "look_at"]


# The parameters that files have names for, each with the bias that goes with it.
_BIASES = MappingProxyType(
    {
        "weight": "bias",
        "scale": None,  # what Black Forest Labs call the weight of a norm
        "in_proj_weight": "in_proj_bias",  # torch.nn.MultiheadAttention: q, k and v in one
        "positional_embedding": None,  # bare parameters of OpenCLIP
        "text_projection": None,
        "modulation": None,  # of Wan, and what diffusers calls it
        "scale_shift_table": None,
        "gate_up_proj": None,  # of transformers' experts: (experts, out, in)
        "down_proj": None,
    }
)
_OF_THEIR_MODULE = (
    "weight",
    "in_proj_weight",
    "scale",
)  # what the module's name means; the others have names of their own


@dataclass(frozen=True)
class Target:
    """A place in a model: two are equal when they are the same place."""

    component: str
    path: str  # within the component, without the segments of wrappers
    # Weak, so that keeping the places of a model does not keep the model.
    reference: weakref.ref[nn.Module] = field(repr=False, compare=False)
    parameter: str = "weight"
    part: Part = WHOLE  # of the parameter
    rest: tuple[Target, ...] = ()  # the places of the rows below its own, where a file has one weight for all of them

    @property
    def places(self) -> tuple[Target, ...]:
        """The places that have the rows of a file's weight, in the order of the rows: one unless there is a `rest`."""
        return (replace(self, rest=()), *self.rest) if self.rest else (self,)

    @property
    def module(self) -> nn.Module:
        """The module that owns the parameter; ReferenceError once it is gone."""
        module = self.reference()
        if module is None:
            raise ReferenceError(f"{self} is gone")
        return module

    def role(self, name: str) -> tuple[str, Part] | None:
        """Return the parameter and what of it is the "weight" or "bias" of this place, or None without a bias."""
        if name == "weight":
            return self.parameter, self.part
        bias = _BIASES.get(self.parameter)
        return None if bias is None else (bias, replace(self.part, inputs=None, transposed=False))

    def __str__(self) -> str:
        """Return the place as people write it."""
        if self.rest:
            return " + ".join(map(str, self.places))
        place = f"{self.component}.{self.path}" if self.path else self.component
        return f"{place} ({self.part})" if str(self.part) else place


_TURNED_LINEAR = "Conv1D"  # transformers (GPT-2): a linear layer whose weight is (in, out)
_TRANSPOSED = Part(transposed=True)


def _is_turned(module: nn.Module) -> bool:
    """Return whether a module has inputs before outputs; experts of transformers say it of themselves."""
    return type(module).__name__ == _TURNED_LINEAR or getattr(module, "is_transposed", None) is True


class Targets:
    """What of a model files have names for. Built once for a model, in milliseconds; finding is a table look-up."""

    def __init__(self, view: ModelView, look: Look | None = None) -> None:
        self._kind = view.kind
        self._precise = view.precise
        look = look or look_at(view)
        self._seen = Seen(look)
        self._facts = Facts(look.modules)
        self._disturbed = {id(layer) for layer in _disturbed_fused_layers(view)}
        # What was found out for a file on these places, by the file; whoever finds it out keeps it here.
        self.known: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
        self._components = tuple(view.components)
        self._latents = {name: _latents(module) for name, module in view.components.items()}
        self._names = {name: _names(name, module) for name, module in view.components.items()}
        # Longest first, so that the most telling prefix decides where two components could be meant.
        self._prefixes = sorted(
            {(normalise(prefix), name) for name in self._names for prefix in prefixes(name, self._components)},
            key=lambda pair: (-len(pair[0]), pair),
        )

    def fits(self, look: Look) -> bool:
        """Return whether the model still has just the modules, parameters and hooks that it had, stored as they were.

        A tenth of the time of building anew.
        """
        return self._seen == look

    def find(self, stem: str) -> Target | None:
        """Return the one place that a file's name for a module can mean, or None: `reason` says why."""
        found = self._matches(stem)
        return found[0] if len(found) == 1 else None

    def twins(self, stem: str) -> tuple[Target, ...]:
        """Return the same place in the other experts of the denoiser (`transformer_2`), for a name without an expert.

        A file for one expert is called as one for the other is: what it is for, its tag says or nobody.
        """
        name, denoiser = normalise(stem), denoiser_of(self._components)
        found: list[Target] = []
        for expert in self._components:
            if denoiser is None or not (expert.startswith(f"{denoiser}_") and expert[len(denoiser) + 1 :].isdigit()):
                continue
            places = {
                id(target): target
                for prefix, component in self._prefixes
                if component == denoiser and name.startswith(prefix)
                for target in self._names[expert].get(name[len(prefix) :], ())
            }
            found += places.values() if len(places) == 1 else ()
        return tuple(found)

    def precise(self, target: Target, name: str) -> Tensor | None:
        """Return the values of a parameter of 8 bits as the host keeps them in more digits, or None."""
        module = target.module
        parameter = module._parameters.get(name)
        if not self._precise or parameter is None or parameter.element_size() > 1:
            return None
        values = getattr(module, self._precise.get(name, ""), None)
        return values if isinstance(values, Tensor) and values.shape == parameter.shape else None

    def latents(self, target: Target) -> tuple[int, ...]:
        """Return how deep the latents of a place's component can be in its first layer, as far as its output tells."""
        return self._latents.get(target.component, ())

    def route(self, target: Target, name: str) -> Route:
        """Return how adapters act on the parameter `name` of a place's module."""
        if id(target.module) in self._disturbed:
            return Route("refused", _NOT_CALLED)
        return route_of(target.module, name, self._facts, self.precise(target, name))

    def same_tables(self, target: Target, name: str) -> list[nn.Module]:
        """Return the other embeddings that look up in this table; which of them the model calls, nobody can tell."""
        module = target.module
        parameter = module._parameters.get(name)
        if parameter is None or not isinstance(module, nn.Embedding):
            return []
        owners = self._facts.owners(parameter)
        return [owner for owner in owners if owner is not module and isinstance(owner, nn.Embedding)]

    def reason(self, stem: str) -> str:
        """Return why `find` has no answer."""
        found = self._matches(stem)
        if found:
            return "several modules share this name: " + " and ".join(map(str, found))
        known = self._components
        component = component_of(stem)
        if component in DENOISERS:
            component = denoiser_of(known) or component
        if component is None or ANY in known:
            return f"no module of that name in {', '.join(known)}"
        if component not in known:
            return f"for {component}, which this {self._kind} does not have"
        return f"no module of that name in {component}"

    def _matches(self, stem: str) -> list[Target]:
        # Some trainers end a name with the joint to an ending that they leave out.
        name = normalise(stem).rstrip("_")
        for spelled in (name, *unwrapped(name, tuple(prefix for prefix, _ in self._prefixes))):
            if found := self._named(spelled):
                return found
        return []

    def _named(self, name: str) -> list[Target]:
        found: list[Target] = []
        for prefix, component in self._prefixes:
            if name.startswith(prefix):
                for target in self._names[component].get(name[len(prefix) :], ()):
                    if target not in found:
                        found.append(target)
        return found


def look_at(view: ModelView) -> Look:
    """Return what a model has now."""
    return Look(view.components.values(), view.precise)


def _latents(root: nn.Module) -> tuple[int, ...]:
    """Return the depth of what a denoiser predicts: by pixel of the latents, and by patch of them."""
    config = getattr(root, "config", None)
    depth = getattr(config, "out_channels", None) or root.__dict__.get("out_channels")
    if depth is None and isinstance(root._modules.get("out"), nn.Sequential):  # LDM
        depth = getattr(root._modules["out"][-1], "out_channels", None)  # type: ignore[index]
    if not isinstance(depth, int):
        return ()
    patch = getattr(config, "patch_size", None)
    sides = patch if isinstance(patch, (tuple, list)) else (patch, patch)
    area = math.prod(side for side in sides if isinstance(side, int))
    return (depth,) if area == 1 else (depth, depth * area)


def _names(component: str, module: nn.Module) -> Mapping[str, tuple[Target, ...]]:
    """Return the targets of a component by normalised name; more than one where modules share it."""
    places: dict[str, Target] = {}
    first: dict[tuple[int, str, Part], Target] = {}  # a module reached by two paths is one place
    for path, owner, parameter, part in _parameters(module):
        key = id(owner), parameter, part
        if key not in first:
            first[key] = Target(component, path, weakref.ref(owner), parameter, part)
        places[path] = first[key]
    parts: dict[tuple[int, Part], Target] = {}
    names: dict[str, tuple[Target, ...]] = {}
    for path, spelling, part in spellings(tuple(places)):
        name, target = normalise(spelling), places[path]
        if part is not WHOLE:
            target = parts.setdefault((id(target), part), replace(target, part=_within(target.part, part)))
        _add(names, name, target)
    for paths, spelling in fused(tuple(places)):
        above, *rest = (places[path] for path in paths)
        _add(names, normalise(spelling), replace(above, rest=tuple(rest)))
    return names


def _within(outer: Part, part: Part) -> Part:
    """Return a part of a part of a parameter; the names of a layer that runs fused mean its rows alone."""
    if outer.count == 1:
        return part
    index, count = outer.index * part.count + outer.span * part.index, outer.count * part.count
    return replace(part, index=index, count=count, span=outer.span * part.span)


def _add(names: dict[str, tuple[Target, ...]], name: str, target: Target) -> None:
    known = names.setdefault(name, (target,))
    if target not in known:
        names[name] = (*known, target)


def _parameters(root: nn.Module) -> Iterator[tuple[str, nn.Module, str, Part]]:
    """Yield (path, module, parameter, part) for all that files may name, as the model would call it without wrappers.

    Unlike `named_modules`, a module that is reached by two paths comes twice, since files use either. A layer that is
    not called, since its attention runs a fused one, comes as its rows of that one.
    """
    waiting: list[tuple[str, nn.Module, tuple[int, ...]]] = [("", root, ())]  # above: ids, against cycles
    while waiting:
        path, module, above = waiting.pop()
        module = _unwrap(module)
        if id(module) in above:
            continue
        inner = f"{path}." if path else ""
        part = _TRANSPOSED if _is_turned(module) else WHOLE
        if module._parameters or "parametrizations" in module._modules:
            for name in _BIASES:
                if _owns(module, name):
                    yield path if name in _OF_THEIR_MODULE else inner + name, module, name, part
        elif stands_for_weight(module):
            yield path, module, "weight", part
        above = (*above, id(module))
        fused = fused_parts(module)
        for name, found in fused.items():
            yield inner + name, _unwrap(found.layer), "weight", found.part
        waiting += [
            (inner + name, child, above)
            for name, child in reversed(module._modules.items())
            if child is not None and name not in fused
        ]


_NOT_CALLED = "for a fused layer that disturbed attention (PAG) does not call: take it apart first"


def _disturbed_fused_layers(view: ModelView) -> Iterator[nn.Module]:
    """Yield the fused layers of attention that a pipeline disturbs (PAG): its calls put a processor there that has q, k
    and v apart, whatever was there before.
    """
    wanted = view.ask("pag_applied_layers")
    patterns = [wanted] if isinstance(wanted, str) else list(wanted or ())
    for root in view.components.values() if patterns else ():
        for path, module in root.named_modules():
            if not getattr(module, "is_cross_attention", False) and any(re.search(one, path) for one in patterns):
                yield from (part.layer for part in fused_parts(module).values())


# torch.compile, PEFT (the original layer lies beside the factors, which are no part of the model), FSDP, checkpointing.
_WRAPPED = ("_orig_mod", "base_layer", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def _unwrap(module: nn.Module) -> nn.Module:
    inner = next((module._modules[name] for name in _WRAPPED if name in module._modules), None)
    if inner is None and list(module._modules) == ["wrapped"] and not module._parameters:
        inner = module._modules["wrapped"]  # the WebUI puts its embeddings of words of its own around a layer so
    return module if inner is None else _unwrap(inner)


def _owns(module: nn.Module, name: str) -> bool:
    parameter = module._parameters.get(name)
    if name == "scale" and "weight" in module._parameters:
        return False  # beside a weight it is no norm's
    if parameter is None:
        if name != "weight":
            return False
        parametrised = module._modules.get("parametrizations")
        return (parametrised is not None and "weight" in parametrised._modules) or (
            "weight_g" in module._parameters or "weight_orig" in module._parameters or stands_for_weight(module)
        )
    return isinstance(parameter, Tensor) and parameter.ndim > 0
