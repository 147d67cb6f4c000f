"""A live model → its modules, by every name that a file can have for them."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from torch import Tensor, nn

from lora_runtime.dialects import (
    ANY,
    DENOISERS,
    WHOLE,
    Part,
    component_of,
    fused,
    normalise,
    prefixes,
    spellings,
    unwrapped,
)
from lora_runtime.pipelines import ModelView

__all__ = ["Target", "Targets"]


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

    def __init__(self, view: ModelView) -> None:
        self._kind = view.kind
        self._precise = view.precise
        self._modules = tuple(weakref.ref(module) for module in _all_modules(view))
        self._components = tuple(view.components)
        self._names = {name: _names(name, module) for name, module in view.components.items()}
        # Longest first, so that the most telling prefix decides where two components could be meant.
        self._prefixes = sorted(
            {(normalise(prefix), name) for name in self._names for prefix in prefixes(name, self._components)},
            key=lambda pair: (-len(pair[0]), pair),
        )

    def fits(self, view: ModelView) -> bool:
        """Return whether the model still has just the modules that it had: a tenth of the time of building anew."""
        modules = list(_all_modules(view))
        return len(modules) == len(self._modules) and all(
            reference() is module for reference, module in zip(self._modules, modules, strict=True)
        )

    def find(self, stem: str) -> Target | None:
        """Return the one place that a file's name for a module can mean, or None: `reason` says why."""
        found = self._matches(stem)
        return found[0] if len(found) == 1 else None

    def precise(self, target: Target, name: str) -> Tensor | None:
        """Return the values of a parameter in more digits than it has itself, where the host keeps them, or None."""
        values = getattr(target.module, self._precise.get(name, ""), None)
        return values if isinstance(values, Tensor) else None

    def reason(self, stem: str) -> str:
        """Return why `find` has no answer."""
        found = self._matches(stem)
        if found:
            return "several modules share this name: " + " and ".join(map(str, found))
        known = self._components
        component = component_of(stem)
        if component in DENOISERS:
            component = next((name for name in known if name in DENOISERS), component)
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


def _all_modules(view: ModelView) -> Iterator[nn.Module]:
    for component in view.components.values():
        yield from component.modules()


def _names(component: str, module: nn.Module) -> Mapping[str, tuple[Target, ...]]:
    """Return the targets of a component by normalised name; more than one where modules share it."""
    places: dict[str, Target] = {}
    first: dict[tuple[int, str], Target] = {}  # a module reached by two paths is one place
    for path, owner, parameter in _parameters(module):
        key = id(owner), parameter
        if key not in first:
            part = _TRANSPOSED if _is_turned(owner) else WHOLE
            first[key] = Target(component, path, weakref.ref(owner), parameter, part)
        places[path] = first[key]
    parts: dict[tuple[int, Part], Target] = {}
    names: dict[str, tuple[Target, ...]] = {}
    for path, spelling, part in spellings(tuple(places)):
        name, target = normalise(spelling), places[path]
        if part is not WHOLE:
            target = parts.setdefault((id(target), part), replace(target, part=part))
        _add(names, name, target)
    for paths, spelling in fused(tuple(places)):
        above, *rest = (places[path] for path in paths)
        _add(names, normalise(spelling), replace(above, rest=tuple(rest)))
    return names


def _add(names: dict[str, tuple[Target, ...]], name: str, target: Target) -> None:
    known = names.setdefault(name, (target,))
    if target not in known:
        names[name] = (*known, target)


def _parameters(root: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Yield (path, module, parameter) for all that files may name, as the model would call it without its wrappers.

    Unlike `named_modules`, a module that is reached by two paths comes twice, since files use either.
    """
    waiting: list[tuple[str, nn.Module, tuple[int, ...]]] = [("", root, ())]  # above: ids, against cycles
    while waiting:
        path, module, above = waiting.pop()
        module = _unwrap(module)
        if id(module) in above:
            continue
        inner = f"{path}." if path else ""
        if module._parameters or "parametrizations" in module._modules:
            for name in _BIASES:
                if _owns(module, name):
                    yield path if name in _OF_THEIR_MODULE else inner + name, module, name
        above = (*above, id(module))
        waiting += [
            (inner + name, child, above) for name, child in reversed(module._modules.items()) if child is not None
        ]


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
        parametrised = module._modules.get("parametrizations") if name == "weight" else None
        return parametrised is not None and "weight" in parametrised._modules
    return isinstance(parameter, Tensor) and parameter.ndim > 0
