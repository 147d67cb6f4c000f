"""Who says at each call of a model what it is about: the step, and what each row of the batch belongs to.

No callback has to be passed to a pipeline. The scheduler is asked: how many time steps it has set, and how often its
`step` was called since. Between two of those calls lies one step, however often the model runs in it; a sampler of the
second order takes two. So a strength is settled before the first call of a step, and stays for all of it.

Rows: classifier-free guidance stacks copies of the same latents (diffusers: those of the negative prompt first), so
the copies themselves tell how many there are; within a copy come the images, each as often as was asked for.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from lora_runtime.beside import uncompiled
from lora_runtime.pipelines import ModelView
from lora_runtime.prompt.strength import Moment
from lora_runtime.stage import Call, Row, Side, Stage

__all__ = ["Clock"]

_COPIES = (4, 3, 2)  # of the latents in one batch, as guidance stacks them
# What the copies are for, by their number. Two: guidance. Three: guidance and a disturbed copy of the prompt's side
# (PAG, SEG); four: the same with both disturbed.
_SIDES: Mapping[int, tuple[Side, ...]] = {
    1: ("positive",),
    2: ("negative", "positive"),
    3: ("negative", "positive", "positive"),
    4: ("negative", "positive", "negative", "positive"),
}
_TIMES = ("timestep", "timesteps", "t")


class Clock:
    """Watches the components of one pipeline and tells their stages what each call is about.

    `images`: how many prompts the pipeline is called with. `stop` ends the watch.
    """

    def __init__(self, model: ModelView, stages: Mapping[str, Stage], images: int = 1) -> None:
        self._images = images
        self._scheduler = model.scheduler
        self._guided = model.guided
        self._stages = stages
        self._said: Moment | None = None  # by `at`
        self._run = _Run(None)
        self._encoded: dict[str, int] = {}  # calls of each text encoder since the last picture
        self._watches = []
        code = model.compiled()
        for name, component in model.components.items():
            watch = self._before_text if name.startswith("text_encoder") else self._before_denoiser
            before = uncompiled(_named(watch, name), code)
            self._watches.append(component.register_forward_pre_hook(before, with_kwargs=True))

    def at(self, moment: Moment | None) -> None:
        """Say which step it is; None leaves it to the scheduler again."""
        self._said = moment

    def stop(self) -> None:
        """Watch no more."""
        for watch in self._watches:
            watch.remove()
        self._run.leave()

    # ---- calls ------------------------------------------------------------------------------------------------------

    def _before_denoiser(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._encoded.clear()
        self._follow(args, kwargs)
        stage = self._stages.get(name)
        latents = _first_tensor(args, kwargs)
        if stage is None or latents is None:
            return
        moment = self._said or self._run.moment()
        height_width, frames, text = _grid(latents, kwargs)
        stage.begin(Call(moment, self._rows(latents), height_width, text, frames))
        self._run.calls += 1

    def _before_text(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # A pipeline encodes the prompts first and the negative prompts, where it needs them, in a call of their own.
        side: Side = "positive" if self._encoded.get(name, 0) % 2 == 0 else "negative"
        self._encoded[name] = self._encoded.get(name, 0) + 1
        stage = self._stages.get(name)
        if stage is not None:
            stage.begin(Call(rows=tuple(Row(image, side) for image in range(self._images))))

    def _follow(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Notice a new run, and a new scheduler."""
        scheduler = self._scheduler()
        times = getattr(scheduler, "timesteps", None)
        if self._run.scheduler() is not scheduler or self._run.times is not times or self._run.over:
            self._run.leave()
            self._run = _Run(scheduler)
            self._run.begin(_time_of(args, kwargs))

    def _rows(self, latents: Tensor) -> tuple[Row, ...]:
        """Return the rows of one picture's copies; an image's row stands for all pictures of its prompt."""
        batch = latents.shape[0]
        known = self._run.copies.get(batch)
        if known is None:
            known = self._run.copies[batch] = self._copies(latents)
        sides = _SIDES[known]
        if known == 1 and self._run.calls % 2 == 1 and self._guided() is not False:
            sides = ("negative",)  # guidance in two calls: the prompt's side comes first
        each = max(1, batch // (known * self._images))
        rows = [Row(image, side) for side in sides for image in range(self._images) for _ in range(each)]
        return tuple(rows) if len(rows) == batch else tuple(rows[:: each or 1])

    def _copies(self, latents: Tensor) -> int:
        """Return how many copies of the same latents are stacked."""
        if self._guided() is False:
            return 1
        for copies in _COPIES:
            if latents.shape[0] % (copies * self._images) == 0:
                first, *others = latents[:, :4].chunk(copies)
                if all(torch.equal(first, other) for other in others):
                    return copies
        return 1


def _named(watch: Callable[..., None], name: str) -> Callable[..., None]:
    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        watch(name, args, kwargs)

    return before


class _Run:
    """One pass of sampling: the steps that a scheduler was set, and how many are done."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler: Callable[[], Any] = (lambda: None) if scheduler is None else weakref.ref(scheduler)
        self.times = getattr(scheduler, "timesteps", None)
        self.order = max(1, int(getattr(scheduler, "order", 1)))
        self.done = 0  # calls of the scheduler's `step`
        self.calls = 0  # of the denoiser since the last of these
        self.copies: dict[int, int] = {}  # by the size of the batch
        self._first = 0  # of the times; a picture that starts from another picture skips some
        self._step: Callable[..., Any] | None = None

    def begin(self, time: float | None) -> None:
        """Count the scheduler's steps from now on; `time` is what the denoiser is given first."""
        scheduler = self.scheduler()
        if scheduler is None or self.times is None or not callable(getattr(scheduler, "step", None)):
            return
        start = getattr(scheduler, "begin_index", None)
        if start is None and time is not None:
            same = [index for index, value in enumerate(self.times.tolist()) if value == time]
            start = same[0] if same else 0
        self._first = start or 0
        step = scheduler.step

        @wraps(step)
        def counted(*args: Any, **kwargs: Any) -> Any:
            result = step(*args, **kwargs)
            self.done += 1
            self.calls = 0
            if self.over:
                self.leave()  # between two runs the scheduler is as it was: a copy of it must not count here
            return result

        scheduler.step = self._step = counted

    @property
    def over(self) -> bool:
        """Whether all of its steps are done."""
        return self.times is not None and self.done >= len(self.times) - self._first

    def leave(self) -> None:
        """Give the scheduler its own `step` back."""
        scheduler = self.scheduler()
        if self._step is not None and getattr(scheduler, "__dict__", {}).get("step") is self._step:
            del scheduler.step
        self._step = None

    def moment(self) -> Moment:
        """Return the step that is being done."""
        if self.times is None:
            return Moment(0, 1)
        steps = max(1, math.ceil((len(self.times) - self._first) / self.order))
        step = min(self.done // self.order, steps - 1)
        return Moment(step, steps, self._sigma(self._first + step * self.order))

    def _sigma(self, index: int) -> float | None:
        """Return the noise level at an index of the times: σ, or √((1 − ᾱ)/ᾱ) where only ᾱ is known."""
        scheduler = self.scheduler()
        sigmas, alphas = getattr(scheduler, "sigmas", None), getattr(scheduler, "alphas_cumprod", None)
        if sigmas is not None and index < len(sigmas):
            return float(sigmas[index])
        if alphas is not None and self.times is not None and index < len(self.times):
            alpha = float(alphas[min(int(self.times[index]), len(alphas) - 1)])
            return math.sqrt((1 - alpha) / alpha) if alpha > 0 else math.inf
        return None


def _first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    found = args[0] if args else next((kwargs[n] for n in ("sample", "hidden_states", "x") if n in kwargs), None)
    if isinstance(found, (list, tuple)) and found and isinstance(found[0], Tensor):
        found = found[0]
    return found if isinstance(found, Tensor) and found.ndim > 1 else None


def _time_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> float | None:
    """Return the time step that a denoiser is given, where it is a single one."""
    given = next((kwargs[name] for name in _TIMES if name in kwargs), args[1] if len(args) > 1 else None)
    if isinstance(given, Tensor):
        flat = given.flatten()
        return float(flat[0]) if flat.numel() else None
    return float(given) if isinstance(given, (int, float)) else None


def _grid(latents: Tensor, kwargs: Mapping[str, Any]) -> tuple[tuple[int, int] | None, int, int]:
    """Return height and width of the latents, their frames, and the tokens of text before them in joint layers."""
    if latents.ndim == 4:
        return (latents.shape[2], latents.shape[3]), 1, 0
    if latents.ndim == 5:
        return (latents.shape[3], latents.shape[4]), latents.shape[2], 0
    ids, text = kwargs.get("img_ids"), kwargs.get("txt_ids")
    if isinstance(ids, Tensor) and ids.shape[-1] >= 3:  # Flux: packed 2 × 2, with the place of each token beside it
        last = ids.reshape(-1, ids.shape[-1]).amax(0)
        return (int(last[1]) + 1, int(last[2]) + 1), 1, text.shape[-2] if isinstance(text, Tensor) else 0
    shapes = kwargs.get("img_shapes")
    if shapes:  # Qwen-Image: frames, height, width of each picture
        frames, height, width = shapes[0][0] if isinstance(shapes[0], list) else shapes[0]
        return (int(height), int(width)), int(frames), 0
    return None, 1, 0
