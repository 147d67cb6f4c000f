"""Canvases and a pipeline to pictures: in one call where they fit, each with its parameters in it, and what acted."""

from __future__ import annotations

import inspect
import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lora_runtime.batching.halving import Stopped, in_halves
from lora_runtime.studio.canvas import Canvas, Commission, Step
from lora_runtime.studio.faults import CancelledError, StudioError
from lora_runtime.studio.preview import Previews
from lora_runtime.studio.samplers import OWN, called, fields_of, sampling
from lora_runtime.studio.settings import SEEDS, Settings

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from lora_runtime.applied import Applied
    from lora_runtime.catalog import LoraCatalog
    from lora_runtime.prompt import Diagnostic
    from lora_runtime.prompt_embeds import Emphasis
    from lora_runtime.report import Report

__all__ = ["Painted", "Picture", "paint", "painted_of"]


@dataclass(frozen=True)
class Picture:
    """A picture as the bytes of its PNG, with the text that stands in it, and what there is to say of its own prompt.

    It was painted in one call with `batch` pictures, itself included; `seconds` is its share of what that took.
    """

    png: bytes = field(repr=False)
    infotext: str
    seed: int
    report: Report
    diagnostics: tuple[Diagnostic, ...]
    batch: int
    seconds: float


@dataclass(frozen=True)
class Painted:
    """What came of settings: the pictures, and by their seeds why others have none."""

    settings: Settings
    pictures: tuple[Picture, ...]
    faults: Mapping[int, Exception] = field(default_factory=dict)

    @property
    def diagnostics(self) -> tuple[Diagnostic, ...]:
        """What there is to say of the prompt, each once."""
        return tuple(dict.fromkeys(said for picture in self.pictures for said in picture.diagnostics))

    @property
    def seconds(self) -> float:
        """What the model took for these pictures alone."""
        return sum(picture.seconds for picture in self.pictures)


def painted_of(asked: Sequence[Settings], outcomes: Sequence[Picture | Exception]) -> list[Painted]:
    """Return what came of settings; `outcomes` are of their canvases, as `canvases_of` gives these.

    The first error is raised where there is no picture at all.
    """
    found, start = [], 0
    for settings in asked:
        own = outcomes[start : start + settings.pictures]
        start += settings.pictures
        pictures = tuple(each for each in own if isinstance(each, Picture))
        faults = {
            (settings.seed + index) % SEEDS: each for index, each in enumerate(own) if isinstance(each, Exception)
        }
        found.append(Painted(settings, pictures, faults))
    errors = [each for each in outcomes if isinstance(each, Exception)]
    if len(errors) == len(outcomes):
        raise errors[0]
    return found


def paint(
    pipe: Any,
    canvases: Sequence[Canvas],
    loras: LoraCatalog,
    *,
    presets: Mapping[str, str] | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> list[Picture | Exception]:
    """Return the picture of each canvas, all of one shape, or why it has none. A seed gives the same in any batch.

    Alone it is the same to the bit, and among others within the rounding of activations. What cannot be used of a
    prompt is in the `.diagnostics` of its picture; StudioError for a picture whose numbers are none, CancelledError for
    one that nobody waits for any more. One that fails costs no other: the batch is halved until it is alone.

    Whoever asked is told each step. Where nobody waits any more the painting ends at its next step, and with Stopped
    once `stopped` says yes; every weight is then as it was. `presets` are block weights by name, None for the common
    ones.
    """
    first = canvases[0].settings
    if first.source is not None:
        pipe = _img2img(pipe)
    with sampling(pipe, first.sampler):
        return _Painting(pipe, loras, presets, stopped).paint(canvases)


def _img2img(pipe: Any) -> Any:
    """Return a pipeline of the same components that begins with a picture."""
    from diffusers import AutoPipelineForImage2Image

    try:
        found = AutoPipelineForImage2Image.from_pipe(pipe)
    except ValueError as error:
        raise StudioError(f"{type(pipe).__name__} cannot begin with a picture: take yours away") from error
    found.set_progress_bar_config(disable=True)
    return found


class _ApartError(Exception):
    """In one call these pictures would not be what each is alone; in those of `calls`, their places, they would."""

    def __init__(self, calls: tuple[tuple[int, ...], ...]) -> None:
        super().__init__("not in one call")
        self.calls = calls


class _OverError(Exception):
    """Nothing of a call is wanted any more: whoever waited is gone, or no picture has numbers."""


class _Painting:
    """Paints with one pipeline."""

    def __init__(
        self, pipe: Any, loras: LoraCatalog, presets: Mapping[str, str] | None, stopped: Callable[[], bool]
    ) -> None:
        from lora_runtime.prompt_embeds import knows_weights

        self._pipe, self._loras, self._presets, self._stopped = pipe, loras, presets, stopped
        # Whether (word:1.2) means something to its text encoders, as in the WebUI.
        self._weights: Emphasis | None = "a1111" if knows_weights(lambda name: getattr(pipe, name, None)) else None

    def paint(self, canvases: Sequence[Canvas]) -> list[Picture | Exception]:
        """Return the picture of each, or why it has none."""
        return in_halves(canvases, self._wanted, self._failed)

    def _failed(self, canvas: Canvas, error: Exception) -> Exception:
        canvas.commission.done += 1
        return _without_frames(error)

    def _wanted(self, canvases: Sequence[Canvas]) -> list[Picture | Exception]:
        """Paint those that somebody waits for."""
        wanted = [canvas for canvas in canvases if not canvas.commission.gone()]
        found: dict[Canvas, Picture | Exception] = {}
        try:
            found |= self._together(wanted) if wanted else {}
        except _ApartError as error:
            apart = [[wanted[place] for place in places] for places in error.calls]
        else:  # among others a picture has no numbers sooner than alone, where what overflows is left out and said
            apart = [[canvas] for canvas in wanted if canvas not in found]
        for part in apart:
            found |= zip(part, self.paint(part), strict=True)
        return [found.get(canvas) or CancelledError("cancelled") for canvas in canvases]

    def _together(self, canvases: Sequence[Canvas]) -> dict[Canvas, Picture]:
        """Paint in one call of the pipeline; return the pictures that have come of it."""
        from lora_runtime.runtime import apply

        started = time.perf_counter()
        with apply(
            self._pipe,
            [canvas.settings.prompt for canvas in canvases],
            negative_prompt=[canvas.settings.negative for canvas in canvases],
            loras=self._loras,
            seeds=[canvas.settings.seed for canvas in canvases],
            weights=self._weights,
            presets=self._presets,
        ) as applied:
            watch = _Watch(self._pipe, canvases, applied, self._stopped)
            try:
                images = self._call(canvases, applied, watch)
            except _OverError:
                images = []
            seconds = (time.perf_counter() - started) / len(canvases)
            found = {}
            for place, (canvas, image) in enumerate(zip(canvases, images, strict=False)):
                if place not in watch.lost:
                    png, infotext = _signed(image, self._pipe, canvas, applied, place)
                    said = applied.report_of(place), applied.diagnostics_of(place)
                    found[canvas] = Picture(png, infotext, canvas.settings.seed, *said, len(canvases), seconds)
                    canvas.commission.done += 1
        return found

    def _call(self, canvases: Sequence[Canvas], applied: Applied[Any], watch: _Watch) -> list[Image.Image]:
        import torch

        watch.check()
        own = [canvas.settings for canvas in canvases]
        first = own[0]
        negatives = [settings.negative for settings in own]
        texts = {"prompt": _one(applied.prompt), "negative_prompt": _one(negatives) if first.negative else None}
        given: dict[str, Any] = {
            **(texts if self._weights is None else applied.embeds),
            "num_inference_steps": first.steps,
            "guidance_scale": first.guidance,
            "generator": _one([torch.Generator("cpu").manual_seed(settings.seed) for settings in own]),
            "callback_on_step_end": watch,
            "width": first.width,
            "height": first.height,
        }
        if first.source is not None:
            size = (first.width, first.height)
            sources = [settings.source.convert("RGB").resize(size) for settings in own if settings.source]
            given |= {"image": _one(sources), "strength": first.strength}
        takes = inspect.signature(self._pipe.__call__).parameters
        watch.check()  # again: by now the text encoders have run
        images = self._pipe(**{name: value for name, value in given.items() if name in takes}).images
        watch.check()
        if len(images) != len(canvases):
            raise StudioError(f"the model gave {len(images)} pictures for {len(canvases)} prompts")
        return list(images)


def _one(values: list[Any]) -> Any:
    """Return values as a pipeline takes them: of one picture the value itself."""
    return values[0] if len(values) == 1 else values


class _Watch:
    """What a pipeline calls after each step of a batch; `lost` are the places of pictures that have no numbers."""

    def __init__(
        self, pipe: Any, canvases: Sequence[Canvas], applied: Applied[Any], stopped: Callable[[], bool]
    ) -> None:
        self._canvases, self._applied, self._stopped = canvases, applied, stopped
        self._previews = Previews(pipe)
        self.lost: set[int] = set()

    def check(self) -> None:
        """Raise _ApartError where these pictures would not be what each is alone; some models show it in a call."""
        calls = self._applied.calls
        if len(calls) > 1:
            raise _ApartError(calls)

    def __call__(self, pipe: Any, step: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
        """Say that a step is done; the pipeline goes on with what this gives."""
        if self._stopped():
            raise Stopped
        self.check()
        latents = self._with_numbers(given["latents"], step + 1)
        wanted = [
            place
            for place, canvas in enumerate(self._canvases)
            if place not in self.lost and not canvas.commission.gone()
        ]
        if not wanted:
            raise _OverError
        steps = int(getattr(pipe, "num_timesteps", None) or self._canvases[0].settings.steps)
        self._tell(wanted, step + 1, steps, latents)
        return {**given, "latents": latents}

    def _with_numbers(self, latents: Tensor, step: int) -> Tensor:
        """Return latents with 0 for the pictures that have no numbers any more, which costs only these."""
        if bool(latents.isfinite().all()):
            return latents
        if len(self._canvases) == 1 or len(latents) != len(self._canvases):  # of these it cannot be told whose they are
            raise StudioError(
                f"after step {step} the picture has no numbers any more (NaN): take lower strengths, "
                "less guidance, or --dtype float32"
            )
        lost = ~latents.flatten(1).isfinite().all(1)
        self.lost.update(lost.nonzero().flatten().tolist())
        return latents.masked_fill(lost.view(-1, *(1 for _ in latents.shape[1:])), 0)

    def _tell(self, wanted: Sequence[int], step: int, steps: int, latents: Tensor) -> None:
        """Tell whoever waits how far their own pictures are, and how the first of them looks."""
        of: dict[Commission, list[int]] = {}
        for place in wanted:
            of.setdefault(self._canvases[place].commission, []).append(place)
        previews = self._previews.of(latents, [places[0] for places in of.values()]) if step < steps else None
        for number, (own, places) in enumerate(of.items()):
            others = len(wanted) - len(places)
            preview = previews[number] if previews else None
            own.tell(Step(min(step, steps), steps, own.done, len(places), own.total, others, preview))


def _without_frames(error: Exception) -> Exception:
    """Return an error without the frames that it went through: these have the memory of the call that failed."""
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    return error


def _signed(picture: Image.Image, pipe: Any, canvas: Canvas, applied: Applied[Any], place: int) -> tuple[bytes, str]:
    """Return a picture as the bytes of a PNG, with the text that the WebUI writes, and that text."""
    from PIL.PngImagePlugin import PngInfo

    settings = canvas.settings
    sampler = called(pipe) if settings.sampler == OWN else settings.sampler
    fields: dict[str, Any] = {"Steps": settings.steps, **fields_of(sampler), "CFG scale": settings.guidance}
    fields |= {"Seed": settings.seed, "width": picture.width, "height": picture.height}
    if canvas.model:
        fields["Model"] = canvas.model
    if settings.source is not None:
        fields["Denoising strength"] = settings.strength
    infotext = applied.infotext(place, **fields)
    notes, buffer = PngInfo(), io.BytesIO()
    notes.add_text("parameters", infotext)
    picture.save(buffer, "PNG", pnginfo=notes)
    return buffer.getvalue(), infotext
