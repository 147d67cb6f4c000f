"""What the WebUI's sampler says of each call of its denoiser: the step, and what the rows belong to.

    params.x  all rows: of each picture its parts (AND), then of each picture the negative prompt

The UNet is then called once with all rows, or several times with some, in this order; negative ones may be left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lora_runtime.stage import Row

from ...engine.denoising import Denoising
from ..sdwebui.steps import moment_of


def before_denoising(denoising: Denoising) -> Callable[[Any], None]:
    """Return the callback `on_cfg_denoiser` that tells `denoising` of each call."""

    def cfg_denoiser(params: Any) -> None:
        if denoising.watched:
            denoising.begin(moment_of(params), rows_of(params))

    return cfg_denoiser


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
