"""What the page's buttons do: gradio's events to calls of the workshop, and what these say to components."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import gradio as gr

from lora_runtime.batching.halving import reason_of
from lora_runtime.prompt import parse_prompt
from lora_runtime.studio import words
from lora_runtime.studio.canvas import Step
from lora_runtime.studio.faults import CancelledError, StudioError
from lora_runtime.studio.page import ALL_LORAS, GALLERY, Page
from lora_runtime.studio.painting import Painted
from lora_runtime.studio.reading import read_picture
from lora_runtime.studio.samplers import OWN
from lora_runtime.studio.settings import MOST_AT_ONCE, SEEDS, Settings
from lora_runtime.studio.shelf import names_of
from lora_runtime.studio.workshop import Workshop, grid_of, strength_points, without

__all__ = ["wire"]

Updates = dict[Any, Any]
_AT_ONCE: dict[str, Any] = {"concurrency_limit": MOST_AT_ONCE, "concurrency_id": "paint"}  # they wait in one line
_PRIVATE: dict[str, Any] = {"api_visibility": "private"}
_QUIET: dict[str, Any] = {**_PRIVATE, "show_progress": "hidden", "trigger_mode": "always_last"}
_TELL_CARDS = f"(model) => document.querySelector('{GALLERY}').setAttribute('model', model)"


@dataclass(frozen=True)
class _Last:
    """What somebody painted last, to be compared with."""

    settings: Settings
    model: str
    path: Path


def wire(page: Page, shop: Workshop) -> None:
    """Give the page's components their events."""
    bench = _Bench(page, shop)
    with page.blocks:
        waiting = {**_AT_ONCE, "show_progress_on": page.status}
        inputs = [page.prompt, page.negative, page.model, *page.settings.values()]
        gr.on(
            [page.paint.click, page.prompt.submit],
            bench.pictures,
            inputs,
            [*bench.line, page.preview, page.gallery, page.report, page.last, page.compare["tag"]],
            **waiting,
            **_PRIVATE,
        )
        page.compare["button"].click(
            bench.compare,
            [page.compare["tag"], page.last],
            [*bench.line, page.compare["slider"]],
            **waiting,
            **_PRIVATE,
        )
        page.grid["button"].click(
            bench.grid,
            [*inputs, *(page.grid[axis] for axis in ("strengths", "loras", "seeds"))],
            [*bench.line, page.grid["sheet"]],
            **waiting,
            **_PRIVATE,
        )
        page.api["button"].click(bench.api, inputs, [page.api["files"], page.api["said"]], api_name="paint", **_AT_ONCE)
        # Not by gradio's `cancels`, which cuts the event off: what it said last came after "Cancelled.", and stayed.
        page.cancel.click(bench.cancel, None, None, queue=False, **_PRIVATE)
        page.blocks.unload(bench.cancel)
        steps = page.settings["steps"]
        gr.on(
            [page.blocks.load, page.prompt.change, steps.change],
            bench.strengths,
            [page.prompt, steps],
            [page.plot],
            **_QUIET,
        )
        page.blocks.load(bench.models, None, [page.model], **_QUIET)
        page.grid["tab"].select(bench.loras, None, [page.grid["loras"]], **_QUIET)
        # The cards say what is made for the model that is chosen.
        page.model.change(None, [page.model], None, js=_TELL_CARDS, **_PRIVATE)
        page.model.change(
            bench.choose,
            [page.model],
            [page.settings[name] for name in ("width", "height", "guidance", "sampler")],
            **_QUIET,
        )
        page.again.click(bench.last_seed, [page.last], [page.settings["seed"]], **_QUIET)
        page.random.click(lambda: -1, None, [page.settings["seed"]], **_QUIET)
        read = page.read
        read["file"].upload(
            bench.read, [read["file"]], [page.prompt, page.negative, *page.settings.values(), read["said"]], **_QUIET
        )


class _Bench:
    """The functions behind the buttons, for all users of one page."""

    def __init__(self, page: Page, shop: Workshop) -> None:
        self._page, self._shop = page, shop
        self._buttons = [page.paint, page.compare["button"], page.grid["button"]]
        self.line = [page.status, page.cancel, *self._buttons]

    def pictures(self, request: gr.Request, *values: Any) -> Iterator[Updates]:
        """Paint what the fields ask for."""
        page = self._page
        yield self._busy()
        try:
            settings, model = self._asked(values)
            done = yield from self._painted([settings], model, request, self._step)
        except Exception as error:
            yield {**self._failed(error), **self._no_preview()}
            return
        if done is None:
            # In one with what enables the button: until the event has ended the page takes no other click on it.
            yield {**self._cancelled(), **self._no_preview()}
            return
        [painted] = done
        paths = [self._shop.save(picture) for picture in painted.pictures]
        tags = [tag.raw for tag in parse_prompt(settings.prompt).tags]
        yield {
            **self._idle("Painted."),
            page.preview: gr.update(value=None, visible=False),
            page.gallery: gr.update(value=list(map(str, paths)), visible=True, selected_index=0),
            page.report: words.report(painted),
            page.last: _Last(settings, model, paths[0]),
            page.compare["tag"]: gr.update(choices=[ALL_LORAS, *dict.fromkeys(tags)], value=ALL_LORAS),
        }

    def api(
        self,
        request: gr.Request,
        prompt: str,
        negative: str = "",
        model: str = "",
        width: float | None = None,
        height: float | None = None,
        sampler: str = OWN,
        steps: float = 20,
        guidance: float | None = None,
        pictures: float = 1,
        seed: float = -1,
        source: Any = None,
        strength: float = 0.75,
    ) -> tuple[list[str], dict[str, Any]]:
        """Paint for a program: return the PNGs and what is to be said of them.

        What is left out is the first model, and what that was made for.
        """
        try:
            chosen = self._shop.models.named(model) if model else next(iter(self._shop.models.all.values()))
            usual = (width or chosen.side, height or chosen.side, sampler, steps)
            less = (chosen.guidance if guidance is None else guidance, pictures, seed, source, strength)
            settings, name = self._asked([prompt, negative, chosen.name, *usual, *less])
            *_, done = self._shop.paint([settings], name, str(request.session_hash))
            (painted,) = cast("list[Painted]", done)
        except Exception as error:
            raise gr.Error(reason_of(error), print_exception=False) from error
        said = {
            "seed": settings.seed,
            "report": str(painted.pictures[-1].report),
            "reports": [str(picture.report) for picture in painted.pictures],
            "messages": [each.message for each in painted.diagnostics],
            "infotexts": [picture.infotext for picture in painted.pictures],
            "batches": [picture.batch for picture in painted.pictures],
            "seconds": [round(picture.seconds, 6) for picture in painted.pictures],
            "faults": {str(seed): reason_of(each) for seed, each in painted.faults.items()},
        }
        return [str(self._shop.save(picture)) for picture in painted.pictures], said

    def compare(self, tag: str, last: _Last | None, request: gr.Request) -> Iterator[Updates]:
        """Paint the last picture again without a tag, and lay the two above each other."""
        if last is None:
            yield self._idle("Paint a picture first: it is compared with itself without its LoRAs.", "warning")
            return
        yield self._busy()
        try:
            asked = without(last.settings, None if tag == ALL_LORAS else tag)
            painted = yield from self._painted([asked], last.model, request)
        except Exception as error:
            yield self._failed(error)
            return
        if painted is None:
            yield self._cancelled()
        else:
            path = self._shop.save(painted[0].pictures[0])
            yield {**self._idle("Left without, right with."), self._page.compare["slider"]: (str(path), str(last.path))}

    def grid(self, request: gr.Request, *values: Any) -> Iterator[Updates]:
        """Paint a picture for each combination, and all of them on one sheet."""
        *asked, strengths, loras, seeds = values
        yield self._busy()
        try:
            settings, model = self._asked(asked)
            axes = {"strengths": strengths, "loras": loras, "seeds": seeds}
            painted = yield from self._painted(grid_of(settings, axes, self._shop.loras), model, request)
        except Exception as error:
            yield self._failed(error)
            return
        if painted is None:
            yield self._cancelled()
        else:
            sheet = self._shop.sheet(painted)
            faults = [error for each in painted for error in each.faults.values()]
            text = f"{len(painted) - len(faults)} pictures."
            if faults:
                text += f" {len(faults)} could not be painted: {reason_of(faults[0])}"
            yield {**self._idle(text, "warning" if faults else "info"), self._page.grid["sheet"]: str(sheet)}

    def cancel(self, request: gr.Request) -> None:
        """End what this user waits for; the event that began it says so, where the page is still open."""
        self._shop.cancel(str(request.session_hash))

    def strengths(self, prompt: str, steps: float) -> Any:
        """Return how strong the tags of a prompt are at each step."""
        import pandas

        points = strength_points(parse_prompt(prompt or "").tags, int(steps))
        return pandas.DataFrame(points, columns=["step", "strength", "LoRA"])

    def models(self) -> Any:
        """Return the models that are there now."""
        return gr.update(choices=list(self._shop.models.all))

    def loras(self) -> Any:
        """Return the LoRAs that are there now."""
        return gr.update(choices=["None", *names_of(self._shop.loras).values()])

    def choose(self, name: str) -> tuple[Any, ...]:
        """Return what a model was made for."""
        model = self._shop.models.named(name)
        return model.side, model.side, model.guidance, gr.update(choices=list(model.samplers), value=model.samplers[0])

    def last_seed(self, last: _Last | None) -> Any:
        """Return the seed of what was painted last."""
        return gr.skip() if last is None else last.settings.seed

    def read(self, path: str) -> Updates:
        """Put what a picture was painted with into the fields."""
        page, said = self._page, self._page.read["said"]
        try:
            found = read_picture(path, self._shop.loras)
        except StudioError as error:
            return {said: words.status(str(error), "error")}
        fields = {"prompt": page.prompt, "negative": page.negative, **page.settings}
        return {
            **{fields[name]: value for name, value in found.items()},
            said: words.status("Read: the fields have what this picture was painted with."),
        }

    def _painted(
        self,
        asked: Sequence[Settings],
        model: str,
        request: gr.Request,
        shown: Callable[[Step], Updates] | None = None,
    ) -> Generator[Updates, None, list[Painted] | None]:
        """Yield what is `shown` of each step; return what was painted, None where it was cancelled."""
        with suppress(CancelledError):
            for said in self._shop.paint(asked, model, str(request.session_hash)):
                if not isinstance(said, Step):
                    return said
                yield {self._page.status: words.progress(said)} if shown is None else shown(said)
        return None

    def _asked(self, values: Sequence[Any]) -> tuple[Settings, str]:
        """Return the settings and the model that the fields say."""
        prompt, negative, model, *rest = values
        given = dict(zip(self._page.settings, rest, strict=True))
        for name in ("width", "height", "steps", "pictures", "seed"):
            given[name] = _whole(given[name], name)
        if given["seed"] < 0:
            given["seed"] = secrets.randbelow(SEEDS)
        return Settings(prompt or "", negative or "", **given), model

    def _step(self, step: Step) -> Updates:
        """Show how far a picture is, and how it looks by now."""
        said: Updates = {self._page.status: words.progress(step)}
        if step.preview is not None:
            said[self._page.preview] = gr.update(value=step.preview, visible=True)
            said[self._page.gallery] = gr.update(visible=False)
        return said

    def _busy(self) -> Updates:
        """Say what is waited for."""
        before = self._shop.line_length
        text = f"Waiting: {before} {'picture' if before == 1 else 'pictures'} came before …" if before else ""
        text = text or "Waiting for the model …"
        still: Updates = {button: gr.update(interactive=False) for button in self._buttons}
        return {**still, self._page.cancel: gr.update(interactive=True), self._page.status: words.status(text)}

    def _idle(self, text: str, kind: str = "info") -> Updates:
        ready: Updates = {button: gr.update(interactive=True) for button in self._buttons}
        return {**ready, self._page.cancel: gr.update(interactive=False), self._page.status: words.status(text, kind)}

    def _cancelled(self) -> Updates:
        return self._idle("Cancelled.")

    def _failed(self, error: Exception) -> Updates:
        """Say why nothing was painted."""
        return self._idle(reason_of(error), "error")

    def _no_preview(self) -> Updates:
        return {
            self._page.preview: gr.update(value=None, visible=False),
            self._page.gallery: gr.update(visible=True),
        }


def _whole(value: Any, name: str) -> int:
    """Return a number of a field as a whole one."""
    if not isinstance(value, (int, float)) or value != int(value):
        raise StudioError(f"{name} is {value!r}: give a whole number")
    return int(value)
