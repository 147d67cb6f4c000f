"""Which rows a call of the denoiser has. Forge puts them together after it has told anybody of the step.

params.x in `on_cfg_denoiser` has one row a picture. Each part of the prompts (AND), and the negative prompts, are a
condition over all pictures; how many of these go into one call depends on the memory that is free, and their order on
how they fit together. So each condition is given a mark with its rows, which Forge hands on with the condition's own
numbers; before the denoiser is called it is taken out again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lora_runtime.stage import Call, Row, Side, Stage

from ...engine.denoising import Denoising
from ..sdwebui.steps import moment_of

__all__ = ["ForgeDenoising", "before_denoising", "mark_rows"]

_MARK = "lora_runtime_rows"
_NO_PART = -1  # of a negative prompt, in which AND is a word


class RowsMark:
    """The rows of one condition. It has what Forge asks of a condition's numbers."""

    def __init__(self, rows: tuple[Row, ...]) -> None:
        self.rows = rows

    def process_cond(self, batch_size: int, device: Any, **_: Any) -> RowsMark:
        """Return the mark for so many pictures, which are those that it was made for."""
        return self

    def can_concat(self, other: RowsMark) -> bool:
        """Return whether both may go into one call: it is no reason against it."""
        return True

    def concat(self, others: Sequence[RowsMark]) -> tuple[Row, ...]:
        """Return the rows of one call."""
        return tuple(row for mark in (self, *others) for row in mark.rows)


def mark_rows(watched: Callable[[], bool]) -> Callable[..., tuple[Any, ...]]:
    """Return a modifier of conditions that marks them while somebody wants to know."""

    def mark(model: Any, x: Any, timestep: Any, uncond: Any, cond: Any, *rest: Any) -> tuple[Any, ...]:
        if watched():
            for part, condition in enumerate(cond or ()):
                _mark(condition, len(x), "positive", part)
            for condition in uncond or ():
                _mark(condition, len(x), "negative", _NO_PART)
        return model, x, timestep, uncond, cond, *rest

    return mark


def _mark(condition: dict[str, Any], pictures: int, side: Side, part: int) -> None:
    rows = tuple(Row(image, side, part) for image in range(pictures))
    # Others may hold the table of this condition.
    condition["model_conds"] = {**condition["model_conds"], _MARK: RowsMark(rows)}


class ForgeDenoising(Denoising):
    """The step that is being done; the rows come with each call."""

    def watch(self, denoiser: Any, stage: Stage) -> Callable[[], None]:
        """Tell `stage` of each call of a denoiser from now on; return what ends it."""

        def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            kwargs = dict(kwargs)
            rows: tuple[Row, ...] = kwargs.pop(_MARK, ())
            latents = next((value for value in (*args, *kwargs.values()) if hasattr(value, "shape")), None)
            if latents is not None and self.moment is not None:
                # An extension that paints in tiles puts several times the rows into one call.
                times, left = divmod(len(latents), len(rows) or 1)
                grid = int(latents.shape[-2]), int(latents.shape[-1])
                frames = int(latents.shape[-3]) if latents.ndim == 5 else 1
                stage.begin(Call(self.moment, rows * times if left == 0 else (), grid, frames=frames))
            return args, kwargs

        return self.follow(denoiser, before)


def before_denoising(denoising: Denoising) -> Callable[[Any], None]:
    """Return the callback `on_cfg_denoiser` that tells `denoising` of each step."""

    def cfg_denoiser(params: Any) -> None:
        if denoising.watched:
            denoising.begin(moment_of(params), ())

    return cfg_denoiser
