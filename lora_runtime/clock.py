"""Who says at each call of a model what it is about: the step, and what each row of the batch belongs to.

No callback has to be passed to a pipeline, and nothing of it is wrapped. The step is asked for: the time step that the
denoiser is given is an element of the scheduler's own tensor of them, and its place there is the step's; else the
scheduler has counted. An element of another tensor of time steps is the step of another pipeline with the same
denoiser. A value is read from the device only where none of these tells. The model family's record says what the
rows are, and where the picture lies in the layers (`families/`).
"""

from __future__ import annotations

import inspect
import math
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lora_runtime.beside import uncompiled
from lora_runtime.families import Given, Row, family_of
from lora_runtime.hooks import Endings, end_all, hook_before
from lora_runtime.pipelines import ModelView
from lora_runtime.prompt.strength import Moment
from lora_runtime.sides import Sides
from lora_runtime.stage import Call, Stage
from lora_runtime.texts import Texts

__all__ = ["Clock", "is_told_steps"]

_WITH_AN_END = ("DDPMWuerstchenScheduler",)  # whose last time is where it arrives, at which no denoiser is called
_OTHERS = 8  # runs of other pipelines that are remembered
_MOST_STEPS = 10_000  # of theirs: a tensor of more is of something else, and would be read to find that out
_TIMES = ("timestep", "timesteps", "t", "timestep_ratio")


class Clock:
    """Watches the components of one pipeline and tells their stages what each call is about.

    `images`: how many prompts the pipeline is called with; `texts`: these and the negative ones, as far as it matters
    which of them a text encoder reads. It watches from `start` to `stop`.
    """

    def __init__(
        self, model: ModelView, stages: Mapping[str, Stage], images: int = 1, texts: Texts | None = None
    ) -> None:
        self._model = replace(model, components={}, wrapped={})  # what is applied must not keep the model
        self._images = images
        self._texts = texts or Texts(model.ask)
        self._stages = stages
        self.said: dict[str, Literal["rows", "places", "steps"]] = {}
        """What could not be told in the calls so far, and of which strengths."""
        for stage in stages.values():
            stage.said = self.said
        self._said: Moment | None = None  # by `at`
        self._runs: dict[str, _Run] = {}  # by the name of the scheduler
        self._others: list[_Run] = []  # the latest, of pipelines with the same denoiser and schedulers of their own
        self._endings: Endings = []

    def start(self, model: ModelView) -> None:
        """Watch from now on; the model is the one that this was made for."""
        code = model.compiled()
        for name, component in model.components.items():
            watch = self._before_text if name.startswith("text_encoder") else _Denoiser(self, name, component)
            hook_before(model.outer(name), uncompiled(_named(watch, name), code), self._endings)

    def at(self, moment: Moment | None) -> None:
        """Say which step it is; None leaves it to the scheduler again."""
        self._said = moment

    def stop(self) -> None:
        """Watch no more."""
        end_all(self._endings)
        self._runs.clear()
        self._others.clear()

    # ---- calls ------------------------------------------------------------------------------------------------------

    def _before_text(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        stage = self._stages.get(name)
        if stage is not None:
            side = self._texts.side(name, args, kwargs)
            rows = () if side is None else tuple(Row(image, side) for image in range(self._images))
            stage.begin(Call(rows=rows))

    def run_of(self, name: str, time: Any) -> _Run:
        """Return the run that a call with this time step is of.

        That of the scheduler that the denoiser is stepped by; a pipeline may have one for its prior too. Where the time
        step is one of another tensor's, it is the run of another pipeline, which may paint while this one does.
        """
        self._texts.painting()
        scheduler = self._model.ask(key := self._scheduler_of(name))
        run = self._runs.get(key)
        if run is None or run.scheduler() is not scheduler:
            run = self._runs[key] = _Run(scheduler)
        if run.has(time) or not isinstance(getattr(scheduler, "timesteps", None), Tensor):
            return run
        other = next((other for other in self._others if other.has(time)), None)
        if other is None and (times := _all_times(time)) is not None:
            other = _Run(_Unseen(times, scheduler))
            self._others = [other, *self._others[: _OTHERS - 1]]
        return other or run

    def _scheduler_of(self, name: str) -> str:
        """Return the name of a component's scheduler: `prior_scheduler` for `prior` and `prior_prior`, else the one."""
        words = name.split("_")
        names = ("_".join(words[:count]) + "_scheduler" for count in range(len(words), 0, -1))
        return next((own for own in names if self._model.ask(own) is not None), "scheduler")


class _Denoiser:
    """What is told of the calls of one denoiser."""

    def __init__(self, clock: Clock, name: str, module: nn.Module) -> None:
        self._clock = clock
        self._names = _arguments(type(module))
        self._family = family_of(module)
        self._config = getattr(module, "config", None)
        model = clock._model
        self._sides = Sides(self._family, model.titles, clock._images, model.ask)
        self._known: dict[int, Any] = {}
        self._seen: object = None  # the run that the sides are of
        self._step: int | None = None  # of the last call

    def __call__(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        arguments = {**dict(zip(self._names, args, strict=False)), **kwargs}
        time = next((arguments[key] for key in _TIMES if arguments.get(key) is not None), None)
        run = self._clock.run_of(name, time)
        moment = run.moment(time)
        if self._seen is not run.number:
            self._sides.forget()
            self._known.clear()
            self._seen, self._step = run.number, None
        first, self._step = self._step != run.index, run.index
        stage = self._clock._stages.get(name)
        if stage is None:
            return
        moment = self._clock._said or moment
        is_told, moment = moment is not None, moment or Moment(0, 1)
        reading = None if self._family is None or self._family.read is None else self._read(arguments)
        if reading is None:
            stage.begin(Call(moment, (), is_told=is_told))
            return
        rows = self._sides.rows(reading, first) or ()
        grid = reading.grid
        place = None if grid is None else (grid.height, grid.width)
        frames = 1 if grid is None else grid.frames
        stage.begin(Call(moment, rows, place, 0, frames, reading.sequences, self._sides.disturbed, is_told))

    def _read(self, arguments: Mapping[str, Any]) -> Any:
        assert self._family is not None and self._family.read is not None
        return self._family.read(Given(arguments, self._config, self._known))


def is_told_steps(denoiser: nn.Module) -> bool:
    """Return whether a model is called with a time step: one without runs once, as a language model does."""
    return not set(_TIMES).isdisjoint(_arguments(type(denoiser)))


def _arguments(kind: type[nn.Module]) -> tuple[str, ...]:
    """Return the names of the arguments of a module's forward, in order."""
    return tuple(inspect.signature(kind.forward).parameters)[1:]


def _named(watch: Callable[..., None], name: str) -> Callable[..., None]:
    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        watch(name, args, kwargs)

    return before


class _Unseen:
    """A scheduler of which nothing is seen but its time steps; for the rest it is taken for a copy of a known one."""

    __slots__ = ("alphas_cumprod", "order", "sigmas", "timesteps")  # no __weakref__: its run is all that holds it

    def __init__(self, timesteps: Tensor, known: Any) -> None:
        self.timesteps = timesteps
        self.order = getattr(known, "order", 1)
        self.alphas_cumprod = getattr(known, "alphas_cumprod", None)
        levels, times = getattr(known, "sigmas", None), timesteps.tolist()
        pairs = () if levels is None else zip(known.timesteps.tolist(), torch.as_tensor(levels).tolist(), strict=False)
        found = dict(pairs)
        self.sigmas = [found[time] for time in times] if found.keys() >= set(times) else None


class _Run:
    """The time steps of one scheduler, and where among them its denoisers are.

    `number` is another object for each pass of sampling. `index` is the place of the last call's time step.
    """

    def __init__(self, scheduler: Any) -> None:
        self.scheduler: Callable[[], Any] = lambda: scheduler
        if hasattr(type(scheduler), "__weakref__"):
            self.scheduler = weakref.ref(scheduler)
        self.number = object()
        self.index = -1
        self._first = 0  # of the times; a picture that starts from another picture skips some
        self._order = max(1, int(getattr(scheduler, "order", 1)))
        self._ends = type(scheduler).__name__ in _WITH_AN_END
        self._tensor: Tensor | None = None  # of the time steps, as the scheduler has it now
        self._original: Tensor | None = None  # as the run began with it: the pipeline goes through this
        self._times: list[float] = []
        self._sigmas: list[float] = []
        self._called = False  # since the scheduler has these time steps
        self._own: Any = None  # the scheduler's own count at the last call
        self._counts = False  # whether that count has been seen to move
        self._time: Any = None  # of the last call
        self._value: float | None = None  # of that, where it was read

    def has(self, time: Any) -> bool:
        """Return whether a time step is one of the scheduler's own, or of those that the run began with."""
        times = getattr(self.scheduler(), "timesteps", None)
        return any(_place_in(own, time) is not None for own in (times, self._original) if isinstance(own, Tensor))

    def moment(self, time: Any) -> Moment | None:
        """Return the step of a call that is given this time step, or None where it cannot be told."""
        scheduler = self.scheduler()
        tensor = getattr(scheduler, "timesteps", None)
        if not isinstance(tensor, Tensor):
            return Moment(0, 1)
        fresh = tensor is not self._tensor
        if fresh:
            self._read(scheduler, tensor)
        index = self._find(scheduler, time)
        if index is None:
            return None
        begin = getattr(scheduler, "begin_index", None)
        # Fresh tensors at the step where the last run began are a run too: that one was broken off there.
        if index < self.index or self.index < 0 or (fresh and index in (0, begin, self._first)):
            self.number = object()
            self._first = begin if isinstance(begin, int) and begin <= index else index
        self.index = index
        steps = max(1, math.ceil((len(self._times) - self._ends - self._first) / self._order))
        step = min(max(0, index - self._first) // self._order, steps - 1)
        at = self._first + step * self._order
        return Moment(step, steps, self._sigmas[at] if at < len(self._sigmas) else None)

    def _read(self, scheduler: Any, tensor: Tensor) -> None:
        """Read the time steps and the noise levels, once a run: σ, or √((1 − ᾱ)/ᾱ) where only ᾱ is known."""
        self._tensor = tensor
        self._called, self._counts, self._value = False, False, None
        times = [float(time) for time in tensor.tolist()]
        if times == self._times:
            return
        self._times, self._original, self.index = times, tensor, -1
        sigmas, alphas = getattr(scheduler, "sigmas", None), getattr(scheduler, "alphas_cumprod", None)
        self._sigmas = []
        if sigmas is not None and len(sigmas):
            self._sigmas += torch.as_tensor(sigmas).tolist()
        elif isinstance(alphas, Tensor) and len(alphas):
            known = alphas.tolist()
            chosen = (known[min(max(0, int(time)), len(known) - 1)] for time in times)
            self._sigmas += [math.sqrt((1 - alpha) / alpha) if alpha > 0 else math.inf for alpha in chosen]

    def _find(self, scheduler: Any, time: Any) -> int | None:
        """Return which of the time steps a call is given, or None where it cannot be told."""
        own = getattr(scheduler, "_step_index", None)  # its own count, None before it has begun
        self._counts = self._counts or (self._called and own != self._own)
        place = _place_in(self._tensor, time)
        if place is not None:
            self._original = self._tensor
        else:  # a pipeline may put back what its scheduler was before, in a copy, and go through the first
            place = _place_in(self._original, time)
        if place is None:
            place = self._counted(scheduler, own, time)
        self._own, self._time, self._called = own, time, True
        return None if place is None else min(place, len(self._times) - 1)

    def _counted(self, scheduler: Any, own: Any, time: Any) -> int | None:
        """Return the step as the scheduler counts; where it is not what is stepped, by the value of the time step."""
        if not self._called or self._counts:
            if isinstance(own, int) and own >= len(self._times):  # it has arrived: somebody else's call
                place = self._by_value(time, -1)
                return None if place < 0 else place
            begin = own if isinstance(own, int) else getattr(scheduler, "begin_index", None)
            return begin if isinstance(begin, int) else self._by_value(time, 0)
        if time is self._time or time is None:
            return self.index
        # Another tensor, and no count that has moved: another call of the same step, or somebody else's scheduler.
        before = _value_of(self._time) if self._value is None else self._value
        self._value = _value_of(time)
        if self._value is None or self._value == before:
            return self.index
        return self._by_value(time, self.index + 1)

    def _by_value(self, time: Any, otherwise: int) -> int:
        """Return the place of the first time step that is the nearest to a value, or to a thousand times it.

        A fraction can be a time step as well: 1.0 is both the first of 1000 and the last before 0. No step comes before
        the one that is expected, and what comes first there is meant: a run goes through all of them.
        """
        value = _value_of(time)
        if value is None:
            return otherwise
        nearest = (
            min((abs(value * scale - known) / max(1.0, abs(known)), place) for place, known in enumerate(self._times))
            for scale in (1.0, 1000.0)
        )
        places = [place for off, place in nearest if off <= _DIGITS]
        return min(places, key=lambda place: (place < otherwise, place), default=otherwise)


_DIGITS = 0.004  # of a time step that was rounded to bfloat16


def _place_in(times: Tensor | None, time: Any) -> int | None:
    """Return which element of a tensor of time steps another tensor shows, None where it shows none of them."""
    if times is None or not isinstance(time, Tensor) or time.dtype != times.dtype or time.device != times.device:
        return None
    if time.numel() > 1 and any(stride for stride, size in zip(time.stride(), time.shape, strict=True) if size > 1):
        return None  # not one element, expanded
    if times.ndim != 1 or time.untyped_storage().data_ptr() != times.untyped_storage().data_ptr():
        return None
    place, rest = divmod(int(time.storage_offset()) - int(times.storage_offset()), times.stride(0) or 1)
    return place if not rest and 0 <= place < len(times) else None


def _all_times(time: Any) -> Tensor | None:
    """Return the tensor of falling or rising time steps that a tensor shows one of, None where it shows none such."""
    if not isinstance(time, Tensor) or not time.numel():
        return None
    whole = time.detach().as_strided((time.untyped_storage().nbytes() // time.element_size(),), (1,), 0)
    if not 1 < len(whole) <= _MOST_STEPS or _place_in(whole, time) is None:
        return None
    values = whole.tolist()
    ordered = sorted(values)
    return whole if ordered[0] != ordered[-1] and ordered in (values, values[::-1]) else None


def _value_of(time: Any) -> float | None:
    """Return a time step's value, which waits for the device; of several, one for each frame, that of the noisiest."""
    if isinstance(time, Tensor):
        return float(time.max()) if time.numel() else None
    return float(time) if isinstance(time, (int, float)) else None
