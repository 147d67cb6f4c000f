"""Which step, image and side each call of the denoiser is about.

The program asks the denoiser for several conditions in one call, or in several, as memory allows, and in an order of
its own. Each condition has an id, which comes with the call; whose it is, the guider knows, by the name of the list
that it is in. So both are noted when a sampling begins, in the options that go with it to each call: nothing is kept
here.

    sample_sigmas   of the sampling, n + 1 for n steps; the last is where it ends
    sigmas          the noise level of the call
    uuids           of the conditions in the call, one for each part of the batch
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.patcher_extension

from lora_runtime.prompt.strength import Moment
from lora_runtime.stage import Call, Row, Side

from .beside import Beside

__all__ = ["moment_at", "rows_of", "tell"]

_KEY = "lora_runtime"
_SIDES: dict[str, Side] = {"positive": "positive", "negative": "negative"}  # by the guider's names for its lists
_OPTIONS = 3  # the place of transformer_options after x and t, if it has no name: c_concat, c_crossattn, control, this
_SAME = 1e-4  # relative: noise levels go through half precision on their way


@dataclass(frozen=True)
class Sampling:
    """What is known of a sampling from its start: its noise levels, and the sides of its conditions by their ids."""

    sigmas: tuple[float, ...]
    sides: Mapping[object, Side]


def tell(patcher: Any, beside: Beside) -> None:
    """Let what acts beside the modules of a clone be told what each call of its denoiser is about."""

    def sampling(executor: Any, guider: Any, sigmas: Any, extra_args: dict[str, Any], *rest: Any, **more: Any) -> Any:
        sides = {
            condition["uuid"]: side
            for name, side in _SIDES.items()
            for condition in guider.conds.get(name) or ()
            if "uuid" in condition
        }
        options = extra_args["model_options"].setdefault("transformer_options", {})
        options[_KEY] = Sampling(tuple(map(float, sigmas)), sides)
        return executor(guider, sigmas, extra_args, *rest, **more)

    def calling(executor: Any, x: Any, t: Any, *rest: Any, **more: Any) -> Any:
        options = more["transformer_options"] if "transformer_options" in more else rest[_OPTIONS]
        call = _call(x, t, options)
        for stage in beside.stages_on(executor.class_obj):
            stage.begin(call)
        return executor(x, t, *rest, **more)

    kinds = comfy.patcher_extension.WrappersMP
    patcher.add_wrapper_with_key(kinds.SAMPLER_SAMPLE, _KEY, sampling)
    patcher.add_wrapper_with_key(kinds.APPLY_MODEL, _KEY, calling)


def _call(x: Any, t: Any, options: Mapping[str, Any]) -> Call:
    """Return what a call with these latents is about; outside of a sampling it is the only step there is."""
    sampling: Sampling | None = options.get(_KEY)
    frames = int(x.shape[-3]) if x.ndim == 5 else 1
    grid = int(x.shape[-2]), int(x.shape[-1])
    if sampling is None:
        return Call(Moment(0, 1, float(t.flatten()[0])), (), grid, frames=frames)
    noise = options.get("sigmas")
    moment = moment_at(float((t if noise is None else noise).flatten()[0]), sampling.sigmas)
    return Call(moment, rows_of(options.get("uuids", ()), len(x), sampling.sides), grid, frames=frames)


def moment_at(sigma: float, sigmas: Sequence[float]) -> Moment:
    """Return the step that a noise level lies in: the last that begins there or before, in the order of sampling.

    A sampler of the second order asks for the end of a step too, which is where the next one begins.
    """
    steps = max(1, len(sigmas) - 1)
    falls = 1.0 if sigmas[0] >= sigmas[-1] else -1.0
    begun = [step for step in range(steps) if falls * (sigmas[step] - sigma) >= -_SAME * abs(sigma)]
    return Moment(begun[-1] if begun else 0, steps, sigma)


def rows_of(uuids: Sequence[object], count: int, sides: Mapping[object, Side]) -> tuple[Row, ...]:
    """Return what `count` rows of a call belong to; () where that cannot be told.

    `uuids`: of its conditions; each has as many neighbouring rows, one for each image.
    """
    each, left = divmod(count, len(uuids) or 1)
    if left or not uuids or not all(uuid in sides for uuid in uuids):
        return ()
    return tuple(Row(image, sides[uuid]) for uuid in uuids for image in range(each))
