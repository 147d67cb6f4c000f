"""Which weights there are: by module and name, and by parameter. A table that keeps no module."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from torch import Tensor, nn

from lora_runtime.adapters import Adapter
from lora_runtime.merge import Piece, Term, rows_of
from lora_runtime.plan import Assignment
from lora_runtime.uploads import bytes_of
from lora_runtime.weights import Weight, plain_data, serial

__all__ = ["Home", "WeightTable"]

_NONE: Mapping[Adapter, Adapter] = MappingProxyType({})


class Home:
    """What is known of one module: its weights by name. It lives as long as the module does."""

    __slots__ = ("__weakref__", "lives", "serial", "weights")

    def __init__(self) -> None:
        self.serial = serial()
        self.weights: dict[str, Weight] = {}
        self.lives: dict[object, object] = {}  # what each owner asks to act beside it


class WeightTable:
    """The weights of all modules that somebody has asked for, and their originals."""

    def __init__(self) -> None:
        """Start with none."""
        # A weight has its parameter, and no weak reference to it: torch swaps no tensors that have one.
        self._homes: weakref.WeakKeyDictionary[nn.Module, Home] = weakref.WeakKeyDictionary()
        self._by_id: weakref.WeakValueDictionary[int, Weight] = weakref.WeakValueDictionary()

    def home(self, module: nn.Module) -> Home:
        """Return what is known of a module, with a weight for each of its parameters as they are now."""
        home = self._homes.get(module)
        if home is None:
            home = self._homes[module] = Home()
        for name, parameter in module._parameters.items():
            if parameter is not None:
                self._weight(home, module, name, parameter)
        return home

    def serial_of(self, module: nn.Module) -> int | None:
        """Return the number of a module, None for one that nothing is known of."""
        home = self._homes.get(module)
        return None if home is None else home.serial

    def _weight(self, home: Home, module: nn.Module, name: str, parameter: nn.Parameter) -> Weight:
        known = home.weights.get(name)
        if known is not None and known.parameter is parameter:
            return known
        if known is not None and not known.patched and known.parameter.is_meta and parameter.is_meta:
            self.go_on(known, parameter)  # an offloader puts a new one there after each call
            return known
        if known is not None and known.patched and known.replacement() is parameter:
            self.go_on(known, parameter)
            return known
        weight = self._by_id.get(id(parameter))  # the same parameter in another module
        if weight is None or weight.parameter is not parameter:
            weight = self._by_id[id(parameter)] = Weight(parameter)
        weight.places.append((weakref.ref(module), name))
        home.weights[name] = weight
        return weight

    def go_on(self, weight: Weight, parameter: nn.Parameter) -> None:
        """Let a weight be that of another Parameter, which shows the same."""
        weight.in_place_of(parameter)
        self._by_id[id(parameter)] = weight

    def renew(self, weight: Weight, parameter: nn.Parameter) -> bool:
        """Let a weight be that of the Parameter in its place by now; return whether it was another's.

        It is not where the old one still is in another module, or where W′ shows and the new one is no copy of it.
        """
        if self._by_id.get(id(parameter)) is weight and weight.parameter is parameter:
            return False
        if weight.parameter is not parameter:
            modules = ((place(), name) for place, name in weight.places)
            if any(module is not None and module._parameters.get(name) is weight.parameter for module, name in modules):
                return False
            if weight.patched and weight.replacement() is not parameter:
                return False
        self.go_on(weight, parameter)
        return True

    def weight_of(self, assignment: Assignment) -> Weight:
        """Return the weight of an assignment's parameter."""
        parameter = assignment.parameter
        weight = self.find(parameter)
        if weight is None:
            home = self.home(assignment.target.module)
            weight = next(found for found in home.weights.values() if found.parameter is parameter)
        return weight

    def find(self, parameter: nn.Parameter) -> Weight | None:
        """Return the weight of a parameter, None where nobody has asked for it."""
        weight = self._by_id.get(id(parameter))
        return weight if weight is not None and weight.parameter is parameter else None

    def all_weights(self) -> list[Weight]:
        """Return all weights that are still there."""
        found = {id(weight): weight for home in list(self._homes.values()) for weight in home.weights.values()}
        return list(found.values())

    @property
    def patched(self) -> int:
        """The number of parameters that are patched now."""
        return sum(weight.patched for weight in self.all_weights())

    @property
    def nbytes(self) -> int:
        """The bytes held beside the models: originals where W′ shows, buffers kept for the next switch, and factors."""
        weights = self.all_weights()
        held = [weight.original if weight.patched else weight.buffer for weight in weights]
        factors = bytes_of(upload for weight in weights for upload in (weight.uploads or {}).values())
        return sum(tensor.nbytes for tensor in held if tensor is not None) + factors.total()

    def intact(self, weights: Iterable[Weight] | None = None) -> bool:
        """Return whether these parameters (all) still show what the last `apply` bound."""
        asked = self.all_weights() if weights is None else weights
        return all(weight.untouched() for weight in asked if weight.patched)

    # ---- originals --------------------------------------------------------------------------------------------------

    def original(self, parameter: nn.Parameter) -> Tensor:
        """Return W₀ of a parameter, patched or not; in place it is the copy."""
        weight = self.find(parameter)
        return plain_data(parameter) if weight is None or weight.original is None else weight.original

    def grounded(self, adapter: Adapter, pieces: Sequence[Piece]) -> Adapter:
        """Return an adapter that has the originals of these pieces, where it depends on them."""
        return adapter.given(tuple(map(self._original_of, pieces))) if pieces else adapter

    def _original_of(self, piece: Piece) -> Tensor:
        """Return what a parameter has of a weight, before any patch."""
        if piece.base is not None:
            return rows_of(piece.base(), piece.part)
        assert piece.parameter is not None
        weight = self.original(piece.parameter) if piece.precise is None else piece.precise
        return rows_of(weight, piece.part)

    def terms(self, assignment: Assignment, sent: Mapping[Adapter, Adapter] = _NONE) -> list[Term]:
        """Return the terms of a parameter; those that depend on the originals of others too are given them.

        `sent`: for adapters of it, the same with their tensors on the parameter's device.
        """
        return [
            replace(
                term,
                adapter=self.grounded(sent.get(term.adapter, term.adapter), term.pieces),
                source=term.adapter if term.adapter in sent else None,
            )
            if term.pieces or sent
            else term
            for term in assignment.terms
        ]
