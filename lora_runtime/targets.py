"""A live model → its modules, by every name that a file can have for them."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from lora_runtime.dialects import ANY, DENOISERS, component_of, normalise, prefixes, spellings
from lora_runtime.pipelines import ModelView

__all__ = ["Target", "Targets"]


@dataclass(frozen=True)
class Target:
    """A place in a model: two are equal when they are the same place."""

    component: str
    path: str  # within the component, without the segments of wrappers
    # Weak, so that keeping the places of a model does not keep the model.
    reference: weakref.ref[nn.Module] = field(repr=False, compare=False)
    parameter: str = "weight"

    @property
    def module(self) -> nn.Module:
        """The module that owns the parameter; ReferenceError once it is gone."""
        module = self.reference()
        if module is None:
            raise ReferenceError(f"{self} is gone")
        return module

    def __str__(self) -> str:
        """Return the place as people write it."""
        return f"{self.component}.{self.path}" if self.path else self.component


class Targets:
    """The modules of a model that own a weight. Built once for a model, in milliseconds; finding is a table look-up."""

    def __init__(self, view: ModelView) -> None:
        self._kind = view.kind
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
        name = normalise(stem)
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
    first: dict[int, Target] = {}  # a module reached by two paths is one place
    for path, owner in _weighted(module):
        places[path] = first.setdefault(id(owner), Target(component, path, weakref.ref(owner)))
    names: dict[str, tuple[Target, ...]] = {}
    for path, spelling in spellings(tuple(places)):
        name, target = normalise(spelling), places[path]
        known = names.setdefault(name, (target,))
        if not any(target is other for other in known):
            names[name] = (*known, target)
    return names


def _weighted(root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield (path, module) for every module that owns a weight, as the model would call it without its wrappers.

    Unlike `named_modules`, a module that is reached by two paths comes twice, since files use either.
    """
    waiting: list[tuple[str, nn.Module, tuple[int, ...]]] = [("", root, ())]  # above: ids, against cycles
    while waiting:
        path, module, above = waiting.pop()
        module = _unwrap(module)
        if id(module) in above:
            continue
        if _owns_weight(module):
            yield path, module
        above = (*above, id(module))
        inner = f"{path}." if path else ""
        waiting += [
            (inner + name, child, above) for name, child in reversed(module._modules.items()) if child is not None
        ]


# torch.compile, PEFT (the original layer lies beside the factors, which are no part of the model), FSDP, checkpointing.
_WRAPPED = ("_orig_mod", "base_layer", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def _unwrap(module: nn.Module) -> nn.Module:
    inner = next((module._modules[name] for name in _WRAPPED if name in module._modules), None)
    return module if inner is None else _unwrap(inner)


def _owns_weight(module: nn.Module) -> bool:
    weight = module._parameters.get("weight")
    if weight is None:
        parametrised = module._modules.get("parametrizations")
        return parametrised is not None and "weight" in parametrised._modules
    return isinstance(weight, Tensor) and weight.ndim > 0
