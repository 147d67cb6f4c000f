"""What the WebUI's sampler says of each call of its denoiser: the step, and what the rows belong to.

`state.sampling_step` lags behind, and differs between the two calls of one step; the denoiser's own counter does not:

    denoiser.step         calls so far in this pass, 0 at its start
    denoiser.total_steps  calls that are expected: twice the steps for a sampler of the second order
    params.x              all rows: of each picture its parts (AND), then of each picture the negative prompt

The UNet is then called once with all rows, or several times with some, in this order; negative ones may be left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from lora_runtime.prompt.strength import Moment
from lora_runtime.stage import Row

from ...engine.denoising import Denoising


def before_denoising(denoising: Denoising) -> Callable[[Any], None]:
    """Return the callback `on_cfg_denoiser` that tells `denoising` of each call."""

    def cfg_denoiser(params: Any) -> None:
        if denoising.watched:
            denoising.begin(moment_of(params), rows_of(params))

    return cfg_denoiser


def moment_of(params: Any) -> Moment:
    """Return the step, which stays the same for the calls that a sampler makes within one."""
    denoiser = params.denoiser
    total = max(1, int(denoiser.total_steps or 1))
    calls = max(1, total // max(1, int(denoiser.steps or total)))  # in one step
    steps = max(1, total // calls)
    # Some samplers make more calls than are expected: DPM adaptive as many as it likes.
    return Moment(min(int(denoiser.step) // calls, steps - 1), steps, _sigma(params))


def _sigma(params: Any) -> float:
    """Return the noise level; DDIM, PLMS and UniPC have the time step in its place."""
    value = float(params.sigma.flatten()[0])
    alphas = getattr(params.denoiser, "alphas", None)
    if alphas is None:
        return value
    alpha = float(alphas[min(max(int(value), 0), len(alphas) - 1)])
    return math.sqrt((1 - alpha) / alpha) if alpha > 0 else math.inf


_NO_PART = -1  # of a negative prompt, in which AND is a word


def rows_of(params: Any) -> tuple[Row, ...]:
    """Return what each row belongs to."""
    rows = len(params.x)
    parts = _parts(params)
    positive = [Row(image, "positive", part) for image, count in enumerate(parts) for part in range(count)]
    negative = [Row(image, "negative", _NO_PART) for image in range(len(parts))]
    # A model that edits pictures (InstructPix2Pix) has a third group: the picture without the prompt.
    while len(positive) + len(negative) < rows:
        negative += negative[: len(parts)] or [Row(0, "negative", _NO_PART)]
    return tuple([*positive, *negative][:rows])


def _parts(params: Any) -> list[int]:
    """Return how many parts the prompt of each picture has."""
    given = getattr(params.denoiser.sampler, "sampler_extra_args", None) or {}
    batch = getattr(given.get("cond"), "batch", None)
    if batch:
        return [len(conditionings) for conditionings in batch]
    # A sampler of some extension that keeps them elsewhere: half of the rows are the negative prompt's.
    return [1] * max(1, len(params.x) // 2)
