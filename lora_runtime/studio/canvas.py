"""One picture to be painted, and whoever asked for it, whom its steps are told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lora_runtime.prompt import LoraTag, parse_prompt
from lora_runtime.studio.settings import SEEDS, Settings

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Canvas", "Commission", "Step", "canvases_of"]


@dataclass(frozen=True)
class Step:
    """How far the pictures are that somebody asked for: a step of those that are painted now, counted from 1.

    `done` of the `total` were painted before, `now` are painted in one call, which has `others` of other people too.
    `preview` is how the first of them looks, where that is due.
    """

    step: int
    steps: int
    done: int
    now: int
    total: int
    others: int = 0
    preview: Image.Image | None = None


@dataclass(eq=False)
class Commission:
    """The pictures that somebody asked for in one go: who is told of their steps, and whether anybody still waits."""

    total: int
    tell: Callable[[Step], None] = lambda step: None
    gone: Callable[[], bool] = lambda: False
    done: int = 0  # pictures


@dataclass(frozen=True, eq=False)
class Canvas:
    """One picture to be painted by a model; `settings.pictures` is 1."""

    settings: Settings
    model: str
    commission: Commission

    @cached_property
    def shape(self) -> tuple[Any, ...]:
        """What a call of a pipeline has one of; a negative prompt is given to all or to none."""
        own = self.settings
        begins = own.source is not None
        size = (own.width, own.height)
        how = (own.steps, own.sampler, own.guidance, own.strength if begins else 0.0)
        return (self.model, begins, *size, *how, bool(own.negative))

    @cached_property
    def tags(self) -> tuple[LoraTag, ...]:
        """The tags of the prompt."""
        return parse_prompt(self.settings.prompt).tags


def canvases_of(asked: Sequence[Settings], model: str, commission: Commission) -> list[Canvas]:
    """Return a canvas for each picture of these settings, in order; seeds follow each other."""
    return [
        Canvas(replace(settings, seed=(settings.seed + index) % SEEDS, pictures=1), model, commission)
        for settings in asked
        for index in range(settings.pictures)
    ]
