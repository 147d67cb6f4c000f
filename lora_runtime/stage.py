"""A strength that is not the same everywhere, and what it comes to in one call of a model.

Who runs the model says at each call what it is about (`Stage.begin`): the step, and what each row of the batch belongs
to. What follows for the strengths is worked out once for a call, and shared by all modules.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from collections.abc import Sequence as Several
from dataclasses import dataclass
from itertools import count, groupby
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from lora_runtime.families.base import Row, Sequence, Side
from lora_runtime.prompt.strength import Curve, Moment, Turn, Window
from lora_runtime.regions import Place

__all__ = ["Call", "Row", "Run", "Side", "Stage", "Varying"]

logger = logging.getLogger("lora_runtime")
_serials = count(1)


@dataclass(frozen=True, slots=True)
class Varying:
    """A strength that is not the same everywhere: constant · Π curves, where and when it holds; else 0."""

    constant: float
    curves: tuple[Curve, ...] = ()
    when: tuple[Window | Turn, ...] = ()
    images: frozenset[int] | None = None  # of a batch of prompts; None: all of them
    side: Side | None = None
    part: int | None = None  # of a prompt with AND
    place: Place | None = None

    def at(self, moment: Moment) -> float:
        """Return the strength at a step, where it holds."""
        if not all(condition.holds(moment) for condition in self.when):
            return 0.0
        return math.prod((curve.at(moment) for curve in self.curves), start=self.constant)

    def means(self, row: Row) -> bool:
        """Return whether a row of a batch is meant."""
        return (
            (self.images is None or row.image in self.images)
            and (self.side is None or row.side == self.side)
            and (self.part is None or row.part == self.part)
        )

    @property
    def by_row(self) -> bool:
        """Whether it differs between the rows of a call."""
        return self.images is not None or self.side is not None or self.part is not None

    @property
    def by_step(self) -> bool:
        """Whether it may differ between the steps."""
        return bool(self.curves or self.when)


_ONLY = Moment(0, 1)
_PLACED_BY = ("grid", "text", "frames", "sequences")  # fields of a Call that tell where a region lies


@dataclass(frozen=True, slots=True)
class Call:
    """What one call of a component is about.

    `rows`: of its batch; one stands for all where the batch is of one kind; () where nobody can tell. `grid`: height
    and width of the latents in the units of the finest layer, None where they are not known; `text`: how many tokens
    of text stand before those of the picture in some layers. `sequences`: of a model whose layers do not halve the
    grid, all the sequences that they see. `disturbed`: how many rows at the end are copies whose attention is
    disturbed: such an attention has them and the others in calls of its layers apart. `is_told`: whether it can be told
    which step it is in.
    """

    moment: Moment = _ONLY
    rows: tuple[Row, ...] = (Row(),)
    grid: tuple[int, int] | None = None
    text: int = 0
    frames: int = 1
    sequences: tuple[Sequence, ...] | None = None
    disturbed: int = 0
    is_told: bool = True


class Run(NamedTuple):
    """Neighbouring rows of a batch in which the same terms act."""

    rows: slice
    terms: tuple[int, ...]  # indices into the profile


class Stage:
    """What the calls of one component are about now, and what follows for its live modules.

    What follows is worked out once for a call, not for each module: modules with the same adapters share it.
    """

    def __init__(self) -> None:
        """Begin with a call of one row at the first step of one."""
        self.call = Call()
        self.serial = next(_serials)  # of the call: no other call of any stage has it
        self.paused = False  # while a module runs once more with a delta for its weight
        self._known: dict[Any, Any] = {}
        self._placed: dict[Any, Tensor | float] = {}  # masks on the device, the same for all steps of a picture
        self._masks: dict[tuple[Place, int, int], Tensor] = {}
        # What could not be told in a call, each once, and of which strengths: of rows, places or steps.
        self.said: dict[str, Literal["rows", "places", "steps"]] = {}

    def begin(self, call: Call) -> None:
        """Say what the next call is about."""
        if call == self.call:
            return
        before, self.call, self.serial = self.call, call, next(_serials)
        self._known.clear()
        if any(getattr(before, name) != getattr(call, name) for name in _PLACED_BY):
            self._placed.clear()
            self._masks.clear()

    def runs(self, profile: tuple[Varying, ...], batch: int) -> tuple[Run, ...]:
        """Return which rows of a batch need which terms; rows that need none are left out."""
        key = "runs", profile, batch
        if key not in self._known:
            if not self.call.is_told and any(varying.by_step for varying in profile):
                self._say(
                    "which step this call is in cannot be told: the scheduler has arrived, and has no such time step; "
                    "what changes from step to step acts as at the first",
                    "steps",
                )
            values = [varying.at(self.call.moment) for varying in profile]
            rows = self._rows(batch) if any(varying.by_row for varying in profile) else [None] * batch
            active = [
                tuple(i for i, varying in enumerate(profile) if values[i] != 0 and _meant(varying, row)) for row in rows
            ]
            self._known[key] = tuple(_runs(active))
        known: tuple[Run, ...] = self._known[key]
        return known

    def _rows(self, batch: int) -> Several[Row | None]:
        """Return what each row of a module's batch is; a batch of frames or pictures has several rows for each.

        None where nobody can tell: what is meant for some rows alone must not act on the others.
        """
        rows = self.call.rows
        if self.call.disturbed and (part := self._apart(batch)) is not None:
            return part
        if rows and batch % len(rows) == 0:
            each = batch // len(rows)
            return [row for row in rows for _ in range(each)]
        if rows:
            self._say(
                f"a layer has a batch of {batch}, which is no multiple of the {len(rows)} rows of the call; "
                "what is for some images or one side alone is left out there"
            )
        else:
            self._say(
                "which image and side each row of this batch belongs to cannot be told; what is for some of them alone "
                "is left out"
            )
        return [None] * batch

    def _apart(self, batch: int) -> list[Row | None] | None:
        """Return the rows of a layer that is called for the disturbed copies alone, or for all others alone."""
        rows, count, frames = self.call.rows, self.call.disturbed, self.call.frames
        for part in (rows[:-count], rows[-count:]):  # of the same length they are the same rows
            if batch == len(part) * frames:
                return [row for row in part for _ in range(frames)]
        return None

    def scale(self, terms: tuple[tuple[Varying, int], ...], like: Tensor) -> Tensor | float:
        """Return the strengths of these terms, each as often as its rank, (R,); one float where all are equal."""
        key = "scale", terms, like.device, like.dtype
        if key not in self._known:
            values = [varying.at(self.call.moment) for varying, _ in terms]
            self._known[key] = (
                values[0] if all(value == values[0] for value in values) else _filled(values, terms, like)
            )
        known: Tensor | float = self._known[key]
        return known

    def places(self, place: Place, shape: tuple[int, ...], spatial: bool, like: Tensor) -> Tensor | float:
        """Return how far each pixel, (h, w), or each token, (tokens, 1), lies inside; 0 where the layer has neither.

        `shape` is that of the layer's output without the batch: (c, h, w) where `spatial`, else (tokens, c).
        """
        key = place, shape[1:] if spatial else shape[:-1], spatial, like.device, like.dtype
        if key not in self._placed:
            found = self._found(place, shape, spatial)
            self._placed[key] = 0.0 if found is None else found.to(like)
        return self._placed[key]

    def _found(self, place: Place, shape: tuple[int, ...], spatial: bool) -> Tensor | None:
        if spatial and len(shape) > 2:
            return self._mask(place, shape[-2], shape[-1])
        found = None
        if not spatial and len(shape) == 2 and self.call.grid is not None:
            found = self._halved(place, shape[0]) if self.call.sequences is None else self._spanned(place, shape[0])
        if found is None:
            layer = f"a layer of {shape[0]} tokens" if not spatial and len(shape) == 2 else "a layer without tokens"
            self._say(f"where the picture lies in {layer} cannot be told; a region is left out there", "places")
        return found

    def _halved(self, place: Place, tokens: int) -> Tensor | None:
        """Return the mask of a layer that has the grid or halves it, with or without the text before it."""
        assert self.call.grid is not None
        for before in dict.fromkeys((0, self.call.text)):
            for frames in dict.fromkeys((1, self.call.frames)):
                grid = _grid(self.call.grid, (tokens - before) / frames)
                if grid is not None:
                    mask = self._mask(place, *grid).reshape(-1, 1)
                    return torch.cat([mask.new_zeros(before, 1), mask.repeat(frames, 1)])
        return None

    def _spanned(self, place: Place, tokens: int) -> Tensor | None:
        """Return the mask of a layer that sees one of the call's sequences; text and reference pictures lie outside."""
        assert self.call.grid is not None and self.call.sequences is not None
        fitting = {sequence for sequence in self.call.sequences if sum(span.tokens for span in sequence) == tokens}
        if len(fitting) != 1:
            return None
        mask = self._mask(place, *self.call.grid).reshape(-1, 1)
        parts = [
            mask.repeat(self.call.frames, 1) if span.kind == "picture" else mask.new_zeros(span.tokens, 1)
            for span in fitting.pop()
        ]
        return torch.cat(parts)

    def _mask(self, place: Place, height: int, width: int) -> Tensor:
        key = place, height, width
        if key not in self._masks:
            self._masks[key] = place.mask(height, width)
        return self._masks[key]

    def _say(self, message: str, of: Literal["rows", "places", "steps"] = "rows") -> None:
        if message not in self.said:
            self.said[message] = of
            logger.warning("%s", message)


def _filled(values: Several[float], terms: tuple[tuple[Varying, int], ...], like: Tensor) -> Tensor:
    """Return each value as often as the rank of its term, written on the device: nothing is copied there."""
    filled = torch.empty(sum(rank for _, rank in terms), dtype=like.dtype, device=like.device)
    start = 0
    for value, (_, rank) in zip(values, terms, strict=True):
        filled[start : start + rank].fill_(value)
        start += rank
    return filled


def _meant(varying: Varying, row: Row | None) -> bool:
    return not varying.by_row if row is None else varying.means(row)


def _runs(active: Several[tuple[int, ...]]) -> Iterator[Run]:
    """Yield the stretches of equal neighbours that are not empty."""
    for terms, group in groupby(range(len(active)), key=lambda row: active[row]):
        rows = list(group)
        if terms:
            yield Run(slice(rows[0], rows[-1] + 1), terms)


_LEVELS = 8  # of halving between the finest layer and the coarsest


def _grid(finest: tuple[int, int], tokens: float) -> tuple[int, int] | None:
    """Return height and width of so many tokens of a picture whose finest grid is given; layers halve it."""
    height, width = finest
    for _ in range(_LEVELS):
        if height * width == tokens:
            return height, width
        height, width = (height + 1) // 2, (width + 1) // 2
    return None
