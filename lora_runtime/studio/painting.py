"""Settings and a pipeline to pictures: each painted alone, with its parameters in it, and what acted."""

from __future__ import annotations

import inspect
import io
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lora_runtime.studio.faults import StudioError
from lora_runtime.studio.preview import Previews
from lora_runtime.studio.samplers import OWN, called, fields_of, sampling
from lora_runtime.studio.settings import Settings

if TYPE_CHECKING:
    from PIL import Image

    from lora_runtime.applied import Applied
    from lora_runtime.catalog import LoraCatalog
    from lora_runtime.prompt import Diagnostic
    from lora_runtime.prompt_embeds import Emphasis
    from lora_runtime.report import Report

__all__ = ["Painted", "Picture", "Step", "paint"]


@dataclass(frozen=True)
class Step:
    """How far a painting is: which step of which picture, both counted from 1, and how that looks where it is due."""

    step: int
    steps: int
    picture: int
    pictures: int
    preview: Image.Image | None = None


@dataclass(frozen=True)
class Picture:
    """A picture as the bytes of its PNG, with the text that stands in it."""

    png: bytes = field(repr=False)
    infotext: str
    seed: int


@dataclass(frozen=True)
class Painted:
    """What came of settings: the pictures, what acted on the last one, and what there is to say of the prompt."""

    settings: Settings
    pictures: tuple[Picture, ...]
    report: Report
    diagnostics: tuple[Diagnostic, ...]
    seconds: float


def paint(
    pipe: Any,
    settings: Settings,
    loras: LoraCatalog,
    *,
    model: str = "",
    presets: Mapping[str, str] | None = None,
    on_step: Callable[[Step], None] = lambda step: None,
) -> Painted:
    """Return the pictures of these settings. A seed gives the same picture, alone and among others.

    `on_step` is told each step, and what it raises ends the painting: every weight is then as it was. `model` is
    written into the pictures, and `presets` are block weights by name, None for the common ones. What cannot be used
    of the prompt is in `.diagnostics`; StudioError for a picture whose numbers are none.
    """
    started = time.perf_counter()
    if settings.source is not None:
        pipe = _img2img(pipe)
    pictures = []
    with sampling(pipe, settings.sampler):
        for index in range(settings.pictures):
            seed = (settings.seed + index) % (1 << 32)
            with _applied(pipe, settings, seed, loras, presets) as applied:
                picture = _call(pipe, settings, seed, applied, _Watch(pipe, settings, index, on_step))
                diagnostics = applied.diagnostics
            pictures.append(_signed(picture, pipe, settings, seed, applied, model))
    seconds = time.perf_counter() - started
    return Painted(settings, tuple(pictures), applied.report, diagnostics, seconds)


def _img2img(pipe: Any) -> Any:
    """Return a pipeline of the same components that begins with a picture."""
    from diffusers import AutoPipelineForImage2Image

    try:
        found = AutoPipelineForImage2Image.from_pipe(pipe)
    except ValueError as error:
        raise StudioError(f"{type(pipe).__name__} cannot begin with a picture: take yours away") from error
    found.set_progress_bar_config(disable=True)
    return found


def _applied(
    pipe: Any, settings: Settings, seed: int, loras: LoraCatalog, presets: Mapping[str, str] | None
) -> Applied[Any]:
    from lora_runtime.runtime import apply

    weights: Emphasis | None = "a1111" if _reads_weights(pipe) else None
    return apply(
        pipe,
        settings.prompt,
        negative_prompt=settings.negative,
        loras=loras,
        seeds=seed,
        weights=weights,
        presets=presets,
    )


def _reads_weights(pipe: Any) -> bool:
    """Return whether (word:1.2) means something to a pipeline's text encoders, as in the WebUI."""
    from lora_runtime.prompt_embeds import knows_weights

    return knows_weights(lambda name: getattr(pipe, name, None))


def _call(pipe: Any, settings: Settings, seed: int, applied: Applied[Any], watch: _Watch) -> Image.Image:
    import torch

    texts = {"prompt": applied.prompt, "negative_prompt": settings.negative or None}
    given: dict[str, Any] = {
        **(applied.embeds if _reads_weights(pipe) else texts),
        "num_inference_steps": settings.steps,
        "guidance_scale": settings.guidance,
        "generator": torch.Generator("cpu").manual_seed(seed),
        "callback_on_step_end": watch,
        "width": settings.width,
        "height": settings.height,
    }
    if settings.source is not None:
        size = (settings.width, settings.height)
        given |= {"image": settings.source.convert("RGB").resize(size), "strength": settings.strength}
    takes = inspect.signature(pipe.__call__).parameters
    found: Image.Image = pipe(**{name: value for name, value in given.items() if name in takes}).images[0]
    return found


class _Watch:
    """What a pipeline calls after each step of one picture."""

    def __init__(self, pipe: Any, settings: Settings, index: int, on_step: Callable[[Step], None]) -> None:
        self._previews, self._settings, self._index, self._on_step = Previews(pipe), settings, index, on_step

    def __call__(self, pipe: Any, step: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
        """Say that a step is done; the pipeline goes on with what it gave."""
        latents = given["latents"]
        if not bool(latents.isfinite().all()):
            raise StudioError(
                f"after step {step + 1} the picture has no numbers any more (NaN): take lower strengths, "
                "less guidance, or --dtype float32"
            )
        steps = int(getattr(pipe, "num_timesteps", None) or self._settings.steps)
        preview = self._previews.of(latents) if step + 1 < steps else None
        self._on_step(Step(min(step + 1, steps), steps, self._index + 1, self._settings.pictures, preview))
        return given


def _signed(
    picture: Image.Image, pipe: Any, settings: Settings, seed: int, applied: Applied[Any], model: str
) -> Picture:
    """Return a picture with the text that the WebUI writes."""
    from PIL.PngImagePlugin import PngInfo

    sampler = called(pipe) if settings.sampler == OWN else settings.sampler
    fields: dict[str, Any] = {"Steps": settings.steps, **fields_of(sampler), "CFG scale": settings.guidance}
    fields |= {"Seed": seed, "width": picture.width, "height": picture.height}
    if model:
        fields["Model"] = model
    if settings.source is not None:
        fields["Denoising strength"] = settings.strength
    infotext = applied.infotext(**fields)
    notes, buffer = PngInfo(), io.BytesIO()
    notes.add_text("parameters", infotext)
    picture.save(buffer, "PNG", pnginfo=notes)
    return Picture(buffer.getvalue(), infotext, seed)
