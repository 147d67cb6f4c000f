"""What each network should show: W₀, and over it a stack of owners of which the topmost one acts.

`apply` puts an owner on top of every component of its model; one that only stays until the next `apply` to the same
model
is replaced by that. Leaving takes an owner out of the stack, wherever it lies. What a user writes into the weights
meanwhile is the new W₀.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from soak.world import folder, probe, reference

ROUNDING = {torch.float32: 2e-6, torch.float64: 2e-6, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}


class Wrong(AssertionError):
    """The models do not show what they should."""


class Dose(NamedTuple):
    """A file at a strength; one that fades goes to 0 at the last step, and so acts beside the weights."""

    file: str
    strength: float
    fades: bool

    def at(self, moment: float, component: str) -> float:
        """Return the strength at a moment between 0 and 1; text encoders run once, before the first step."""
        return self.strength * (1 - moment) if self.fades and component != "text_encoder" else self.strength


@dataclass(eq=False)
class Owner:
    """Who applied what to which components: {component: network}."""

    root: str
    components: Mapping[str, int]
    doses: tuple[Dose, ...]
    applied: Any
    block: bool  # entered, so that it stays beneath what comes later
    moment: float = 0.0  # said by `at`
    in_place: bool = False  # W₀ lies in host memory and the storage of the weights is written
    refused: frozenset[tuple[str, str, str]] = frozenset()  # (file, component, parameter), by the report with a reason


@dataclass
class Weights:
    """One network: its real module, and by parameter the bits that W₀ may have now."""

    kind: int
    module: nn.Module
    base: dict[str, list[Tensor]]
    kept: dict[str, Tensor]  # W₀ as it was when the first of the present owners came
    written: bool = False  # by somebody else while patched: until the next `apply` the values may show as they are
    hooked: bool = False
    rounding: float = ROUNDING[torch.float32]  # of the coarsest dtype that what is shown has passed through

    @property
    def dtype(self) -> torch.dtype:
        return self.base["b.weight"][0].dtype

    def cast(self, dtype: torch.dtype) -> None:
        """Take note of `.to(dtype)`: W₀ went the same way, or what is kept of it is cast at the end."""
        self.rounding = max(self.rounding, ROUNDING[dtype])
        for name, bits in self.base.items():
            self.base[name] = [value.to(dtype) for value in [*bits, self.kept[name]]]

    def write(self, values: Mapping[str, Tensor], owned: bool) -> None:
        """Take note of values that somebody wrote into the parameters: they are W₀ from now on."""
        self.base = {name: [value.clone()] for name, value in values.items()}
        self.kept = {name: bits[0] for name, bits in self.base.items()}
        self.written = owned


@dataclass
class Expected:
    """All networks and all owners, the topmost last."""

    networks: list[Weights]
    owners: list[Owner] = field(default_factory=list)

    def top(self, network: int) -> Owner | None:
        """Return whose wishes this network shows."""
        return next((owner for owner in reversed(self.owners) if network in owner.components.values()), None)

    def shown(self, network: int) -> dict[str, Tensor]:
        """Return the parameters that this network acts by, in float64."""
        weights = self.networks[network]
        values = {name: bits[0].double() for name, bits in weights.base.items()}
        owner = self.top(network)
        if owner is None:
            return values
        component = next(name for name, index in owner.components.items() if index == network)
        _, changes = folder()
        deltas: dict[str, Tensor] = {}
        for dose in owner.doses:
            for (place, name), change in changes[dose.file].items():
                if place == component and name in values and (dose.file, place, name) not in owner.refused:
                    strength = dose.at(owner.moment, component)
                    deltas[name] = deltas.get(name, 0) + strength * change(values[name])
        return values | {name: values[name] + delta for name, delta in deltas.items()}

    def check(self, only: Sequence[int] | None = None) -> None:
        """Raise Wrong where a network (of `only` these) does not compute what it should, or W₀ has other bits."""
        for number, weights in enumerate(self.networks):
            if only is not None and number not in only:
                continue
            owner = self.top(number)
            if owner is None and not weights.hooked:
                self._check_bits(number, weights)
            out = weights.module(probe(weights.dtype)).double()
            want = output(weights.kind, self.shown(number))
            if _near(out, want, weights.rounding):
                continue
            plain = output(weights.kind, {name: bits[0].double() for name, bits in weights.base.items()})
            # What acts beside the weights still does after they were written; what was merged does not.
            excused = weights.written and owner is not None
            if excused and (_near(out, plain, weights.rounding) or any(dose.fades for dose in owner.doses)):
                continue
            effect = (want - plain).norm() if owner is not None else want.norm()
            raise Wrong(
                f"network {number} shows something else than {owner and owner.doses}: "
                f"off by {float((out - want).norm() / effect):.2g} of the effect"
                + (" (it shows no LoRA)" if _near(out, plain, weights.rounding) else "")
            )

    def _check_bits(self, number: int, weights: Weights) -> None:
        weights.written, weights.rounding = False, ROUNDING[weights.dtype]
        for name, parameter in weights.module.named_parameters():
            allowed = weights.base.get(name)
            if allowed is None:  # a fused weight
                continue
            found = next((bits for bits in allowed if _same(parameter.data, bits)), None)
            if found is None:
                off = float((parameter.double() - allowed[0].double()).abs().max())
                raise Wrong(f"nobody owns network {number}, but {name} is off its W0 by {off:.2g}")
            weights.base[name], weights.kept[name] = [found], found
        hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in weights.module.modules())
        if hooks:
            raise Wrong(f"nobody owns network {number}, but {hooks} hooks are on it")


def output(kind: int, values: Mapping[str, Tensor]) -> Tensor:
    """Return what a network with these parameters computes, in float64."""
    with torch.no_grad():
        out: Tensor = torch.func.functional_call(reference(kind), dict(values), (probe(torch.float64),))
    return out


def _near(found: Tensor, wanted: Tensor, rounding: float) -> bool:
    return bool(((found - wanted).abs() <= rounding * (4 + 2 * wanted.abs())).all())


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)
