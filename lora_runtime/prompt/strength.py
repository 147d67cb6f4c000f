"""Strength as a function: of the step, the block and the place. A number is its simplest case.

Nothing here knows a model: a curve is asked for its value at a `Moment`, and what depends on blocks is asked for the
path of a module.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise
from types import MappingProxyType
from typing import Literal

__all__ = [
    "CURVES",
    "Curve",
    "Key",
    "Moment",
    "Position",
    "Region",
    "Shape",
    "Strength",
    "Turn",
    "Unit",
    "Window",
    "at",
]

Unit = Literal["fraction", "step", "sigma", "share"]
Shape = Literal["linear", "hold", "ease", "ease-in", "ease-out"]

# How far a value has gone from one key to the next, by how far the time has.
CURVES: Mapping[str, Callable[[float], float]] = MappingProxyType(
    {
        "linear": lambda t: t,
        "hold": lambda t: 0.0,
        "ease": lambda t: t * t * (3.0 - 2.0 * t),
        "ease-in": lambda t: t * t,
        "ease-out": lambda t: t * (2.0 - t),
    }
)
_DIGITS = 3  # strengths that vary are rounded to this, so that what is nearly equal is equal and costs nothing anew


def number(value: float, spec: str = "") -> str:
    """Return the shortest text that `float()` reads back as `value`, or what a format `spec` makes of it."""
    return format(value, spec) if spec else repr(float(value)).removesuffix(".0")


@dataclass(frozen=True, slots=True)
class Moment:
    """A step of one pass of sampling, from 0 to `steps` − 1, and its noise level where the sampler tells it."""

    step: int
    steps: int
    sigma: float | None = None


@dataclass(frozen=True, slots=True)
class Position:
    """A place in the run: a fraction (0 the first step, 1 the last), a number of steps done, or a noise level.

    A share is Forge Neo's fraction: of N steps the one after i others is at i/N, so that no step is at 1.
    """

    value: float
    unit: Unit = "fraction"

    def text(self, bare: bool = False, spec: str = "") -> str:
        """Return the position as a tag has it, "50%", "10s" or "7.5sigma", with its unit unless `bare` or a share."""
        if bare or self.unit == "share":
            return number(self.value, spec)
        if self.unit == "fraction":
            percent = Decimal(repr(self.value)).scaleb(2)
            return f"{number(float(percent), spec) if spec else format(percent.normalize(), 'f')}%"
        return number(self.value, spec) + {"step": "s", "sigma": "sigma"}[self.unit]

    def in_steps(self, steps: int) -> float:
        """Return the position as a number of steps done, for a run of `steps`; a sigma has none."""
        whole = {"fraction": steps - 1, "share": steps}
        return self.value * whole.get(self.unit, 1)


@dataclass(frozen=True, slots=True)
class Key:
    """A value at a position."""

    value: float
    position: Position


@dataclass(frozen=True, slots=True)
class Curve:
    """Values at positions, in the order of the positions, and how to go from one to the next.

    Before the first key the value is the first key's, after the last the last one's. Keys by sigma are all by sigma, in
    the order of time: from much noise to little.
    """

    keys: tuple[Key, ...]
    shape: Shape = "linear"

    def __str__(self) -> str:
        return format(self, "")

    def __format__(self, spec: str) -> str:
        """Return the keyframes as a tag has them, "0.2@0,1@0.5", numbers by `spec`, shares in brackets."""
        units = {key.position.unit for key in self.keys}
        places = [key.position.value for key in self.keys]
        # Bare numbers are fractions if the greatest is not above 1, and steps otherwise.
        steps = max(places) > 1 and not any(0 < place < 1 for place in places)
        bare = (units == {"fraction"} and max(places) <= 1) or (units == {"step"} and steps)
        text = ",".join(f"{number(key.value, spec)}@{key.position.text(bare, spec)}" for key in self.keys)
        return f"[{text}]" if units == {"share"} else text

    def at(self, moment: Moment) -> float:
        """Return the value at a step, rounded to 0.001. By sigma, a sampler without noise levels gives the first."""
        if self.keys[0].position.unit == "sigma":
            now = math.inf if moment.sigma is None else moment.sigma
            # Time goes from high noise to low: the negative grows with it.
            return self._between([(-key.position.value, key.value) for key in self.keys], -now)
        if moment.steps <= 1:
            return round(self.keys[0].value, _DIGITS)
        places = [(key.position.in_steps(moment.steps), key.value) for key in self.keys]
        return self._between(sorted(places, key=lambda place: place[0]), float(moment.step))

    def _between(self, places: list[tuple[float, float]], now: float) -> float:
        value = places[0][1]
        for (start, before), (end, after) in pairwise(places):
            if now >= end:
                value = after
            elif now > start:
                value = before + (after - before) * CURVES[self.shape]((now - start) / (end - start))
                break
        return round(value, _DIGITS)


Strength = float | Curve


def at(strength: Strength, moment: Moment) -> float:
    """Return a strength at a step."""
    return strength.at(moment) if isinstance(strength, Curve) else strength


@dataclass(frozen=True, slots=True)
class Window:
    """From one position up to, and without, another; None is the end of the run on that side."""

    start: Position | None = None
    stop: Position | None = None

    def holds(self, moment: Moment) -> bool:
        """Return whether the step lies inside. A fraction is of the number of steps: 0.5 of 10 is 5 steps done."""
        return not (self.start is not None and not _reached(self.start, moment)) and not (
            self.stop is not None and _reached(self.stop, moment)
        )


def _reached(position: Position, moment: Moment) -> bool:
    if position.unit == "sigma":
        return moment.sigma is not None and moment.sigma <= position.value
    # As prompt editing counts: so many steps are done, of all; half of ten is five, and half of five is two.
    place = math.floor(position.value * moment.steps) if position.unit == "fraction" else position.value
    return moment.step >= place


@dataclass(frozen=True, slots=True)
class Turn:
    """Of every `count` steps the one at `index`: alternation."""

    index: int
    count: int

    def holds(self, moment: Moment) -> bool:
        """Return whether it is this one's turn."""
        return moment.step % self.count == self.index


@dataclass(frozen=True, slots=True)
class Region:
    """Where in the picture: a mask's file (white is inside), or a box (x0, y0, x1, y1) in fractions of the picture.

    `soft` is the width of the box's edges, from inside to outside, in fractions of the picture's shorter side.
    """

    mask: str | None = None
    box: tuple[float, float, float, float] | None = None
    soft: float = 0.0
