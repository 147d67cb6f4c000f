"""What an apply to a model can change: all parameters and modules that its components reach.

One parameter under two roots (a wrapper and the model inside it, tied weights, a text encoder of two pipelines) is one
weight, so two scopes meet just where they have something in common.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Sequence
from itertools import chain

from torch import nn

from lora_runtime.hooks import Endings, hook_moves
from lora_runtime.patcher import Patcher
from lora_runtime.pipelines import ModelView
from lora_runtime.routes import Look, modules_of
from lora_runtime.targets import Targets, look_at
from lora_runtime.weight_table import Home
from lora_runtime.weights import Weight

__all__ = ["PATCHER", "Outline", "Scope", "known_of", "scope_of"]

PATCHER = Patcher()
"""The one table of what all models of this process show."""


class _Reach:
    """What one component reaches. The table of these forgets it with the component."""

    def __init__(self, modules: list[nn.Module]) -> None:
        self.modules = [weakref.ref(module) for module in modules]
        self.homes = [PATCHER.home(module) for module in modules]
        self.weights = list({id(w): w for home in self.homes for w in home.weights.values()}.values())
        self.targets: weakref.WeakKeyDictionary[Scope, Targets] = weakref.WeakKeyDictionary()
        self._tables = [(home.weights, module._parameters) for home, module in zip(self.homes, modules, strict=True)]
        self._tables = [(weights, table) for weights, table in self._tables if table]
        self._ids = [*map(id, chain.from_iterable(table.values() for _, table in self._tables))]
        for module in modules:
            if hasattr(module, "merged_adapters") and "base_layer" in module._modules:
                for weight in PATCHER.home(module._modules["base_layer"]).weights.values():  # type: ignore[arg-type]
                    weight.tuner = weakref.ref(module)
        self.serials = frozenset(chain((home.serial for home in self.homes), (w.serial for w in self.weights)))

    def fits(self, modules: list[nn.Module]) -> bool:
        """Return whether the component still has just these modules and parameters."""
        return [reference() for reference in self.modules] == modules and (
            # In one go, without a look at each; it is no different where an offloader put others on the meta device.
            [*map(id, chain.from_iterable(table.values() for _, table in self._tables))] == self._ids
            or all(
                (weight := weights.get(name)) is not None and weight.parameter is parameter
                for weights, table in self._tables
                for name, parameter in table.items()
                if parameter is not None
            )
        )


class Outline:
    """Enough of a model to wait for whoever has a part of it: the numbers of its modules that are known."""

    def __init__(self, serials: frozenset[int]) -> None:
        self.serials = serials

    def meets(self, other: Outline) -> bool:
        """Return whether the two have a parameter or a module in common."""
        return self is other or not self.serials.isdisjoint(other.serials)


class Scope(Outline):
    """The weights and modules of a model; it keeps none of them alive."""

    def __init__(self, view: ModelView, reaches: list[_Reach], look: Look) -> None:
        super().__init__(frozenset().union(*(reach.serials for reach in reaches)))
        weights = {id(w): w for reach in reaches for w in reach.weights}
        self._weights = tuple(map(weakref.ref, weights.values()))
        homes = {
            id(module()): (module, home)
            for reach in reaches
            for module, home in zip(reach.modules, reach.homes, strict=True)
        }
        self._homes = tuple((module, weakref.ref(home)) for module, home in homes.values())
        self.reaches = tuple(map(weakref.ref, reaches))
        self.find_targets(view, look)

    def find_targets(self, view: ModelView, look: Look) -> None:
        """Find the places of the model anew. They lie with its first component: what is cached there has parameters."""
        targets = Targets(view, look)
        reach = self.reaches[0]()
        assert reach is not None  # who asks has the component
        reach.targets[self] = targets
        self._targets = weakref.ref(targets)

    @property
    def targets(self) -> Targets:
        """The places of the model by every name that files use."""
        targets = self._targets()
        assert targets is not None  # who asks has the model
        return targets

    def covers(self, other: Scope) -> bool:
        """Return whether this has all that is still there of the other: a parameter goes with its place."""
        if self is other or other.serials <= self.serials:
            return True
        return all(home.serial in self.serials for _, home in other.homes())

    def attentions(self) -> list[nn.Module]:
        """Return the attention layers that can run fused and are still there."""
        modules = (reference() for reference, _ in self._homes)
        return [module for module in modules if module is not None and "fused_projections" in module.__dict__]

    def follow_moves(self, endings: Endings) -> None:
        """Keep no Parameter that a move of a component has put another in the place of, until the endings are called.

        Some kinds of `.to` make new Parameters. The old ones have the device's memory for as long as anybody has them.
        """
        for root in [root for reference in self.reaches if (reach := reference()) and (root := reach.modules[0]())]:
            hook_moves(root, lambda: self._renew, endings)

    def _renew(self) -> None:
        """Go on with the Parameters that are in the modules now."""
        renewed = [
            PATCHER.renew(weight, now)
            for module, home in self.homes()
            for name, weight in list(home.weights.items())
            if (now := module._parameters.get(name)) is not None
        ]
        targets = self._targets()
        if any(renewed) and targets is not None:
            targets.known.clear()  # where files go, with the parameters of that time; the next look finds it anew

    def is_gone(self) -> bool:
        """Return whether the model is: none of its modules is there any more."""
        return all(module() is None for module, _ in self._homes)

    def weights(self) -> list[Weight]:
        """Return those that are still there."""
        return [weight for reference in self._weights if (weight := reference()) is not None]

    def homes(self) -> Iterator[tuple[nn.Module, Home]]:
        """Yield the modules that are still there, with what is known of them."""
        for reference, home_reference in self._homes:
            module, home = reference(), home_reference()
            if module is not None and home is not None:
                yield module, home


_reaches: weakref.WeakKeyDictionary[nn.Module, _Reach] = weakref.WeakKeyDictionary()  # by component
_scopes: weakref.WeakKeyDictionary[nn.Module, dict[tuple[object, ...], Scope]] = weakref.WeakKeyDictionary()
_KEPT = 4  # scopes by first component: of the pipelines that have it
# Two threads that look at a model for the first time must find one and the same: what only one of them has made would
# be gone before it is used, or patch weights that the other knows as its own.
_looking = threading.Lock()


def known_of(view: ModelView) -> Outline:
    """Return what is known of a model without a look at its parameters: its scope as it was at the last look, if any.

    It is what to wait for before a look; a look tells whether it still is the scope.
    """
    components = list(view.components.values())
    with _looking:
        reaches = [_reaches.get(component) for component in components]
        scope = _scopes.get(components[0], {}).get(_key_of(view, reaches))
        if scope is not None and [reference() for reference in scope.reaches] == reaches:
            return scope
        modules = chain.from_iterable(map(modules_of, components))
        return Outline(frozenset(serial for module in modules if (serial := PATCHER.serial_of(module)) is not None))


def scope_of(view: ModelView) -> Scope:
    """Return the scope of a model; the same object while its modules and parameters are the same.

    Whoever looks has the model, or at least waits for nobody to run it: in a run an offloader swaps its parameters.
    A look takes 0.2 ms for Flux (1,275 modules), where finding it takes 30 ms.
    """
    with _looking:
        return _scope_of(view)


def _scope_of(view: ModelView) -> Scope:
    components = list(view.components.values())
    look = look_at(view)
    reaches = [_reach_of(component, modules) for component, modules in zip(components, look.parts, strict=True)]
    known = _scopes.setdefault(components[0], {})
    key = _key_of(view, reaches)
    scope = known.get(key)
    if scope is None or [reference() for reference in scope.reaches] != reaches:
        if len(known) >= _KEPT:
            known.clear()
        scope = known[key] = Scope(view, reaches, look)
    elif not scope.targets.fits(look):  # fused, hooked or stored otherwise since
        scope.find_targets(view, look)
    return scope


def _key_of(view: ModelView, reaches: Sequence[_Reach | None]) -> tuple[object, ...]:
    return *view.components, *map(id, reaches), *view.precise.items(), view.kind


def _reach_of(component: nn.Module, modules: list[nn.Module]) -> _Reach:
    reach = _reaches.get(component)
    if reach is None or not reach.fits(modules):
        reach = _reaches[component] = _Reach(modules)
    return reach
