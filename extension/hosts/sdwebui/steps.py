"""Which step a call of the denoiser is in, by the WebUI's own counter.

`state.sampling_step` lags behind, and differs between the two calls of one step; the denoiser's own counter does not:

    denoiser.step         calls so far in this pass, 0 at its start
    denoiser.total_steps  calls that are expected: twice the steps for a sampler of the second order
"""

from __future__ import annotations

import math
from typing import Any

from lora_runtime.prompt.strength import Moment

__all__ = ["moment_of"]


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
