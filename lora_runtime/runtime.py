"""The whole line: a prompt with tags changes a model, and leaves no trace."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Any, Generic, Literal, TypeVar

from lora_runtime.clock import Clock
from lora_runtime.embeddings import load_embeddings, spelled_out
from lora_runtime.limits import Limits
from lora_runtime.lookup import Lookup, Loras
from lora_runtime.ownership import ModelState, owned
from lora_runtime.patcher import Originals
from lora_runtime.pipelines import ModelView, view
from lora_runtime.plan import make_plan
from lora_runtime.problems import Problems, judge, text_at_all_steps, warn_of_idle_tags, warn_of_negative_tags
from lora_runtime.prompt import Diagnostic, LoraTag, Prompt, parse_prompt
from lora_runtime.prompt.strength import Moment
from lora_runtime.prompt.tags import Dialect, Scope
from lora_runtime.report import Report
from lora_runtime.requests import Request, of_batch
from lora_runtime.texts import Texts

__all__ = ["Applied", "Loras", "apply", "restore"]

logger = logging.getLogger("lora_runtime")

Text = TypeVar("Text", str, list[str])


class Applied(Generic[Text]):
    """What one `apply` did. Leaving its `with` block, or `restore()`, undoes it.

    Inside the `with` block the model belongs to the thread that entered it: an `apply` by another thread waits.
    """

    def __init__(self, model: ModelView, prompt: Text, negative_prompt: str | list[str] | None) -> None:
        """Hold the clean text; `apply` fills in the rest."""
        self.prompt: Text = prompt
        """The text without its tags: a list where a list came in."""
        self.negative_prompt = negative_prompt
        """The negative prompt: as it came in, or with `negative_tags="apply"` without its tags."""
        self.prompts: tuple[Prompt, ...] = ()
        """Each prompt as it was read, with the places of its tags."""
        self.diagnostics: tuple[Diagnostic, ...] = ()
        """What could not be read, found or used, with its place in the prompt: of a list what could not be read comes
        first, prompt by prompt, and what is common to all has its place in the first."""
        self.report = Report()
        """What went where, and for each key that found no place the reason."""
        self._token = object()
        self._model = model
        self._requests: tuple[Request, ...] = ()
        self._originals: Originals = "auto"
        self._clock: Clock | None = None
        self._texts: Texts | None = None  # told apart where negative tags act
        self._entered: list[tuple[ModelState, ExitStack]] = []

    @property
    def _images(self) -> int:
        return max(1, len(self.prompts))

    @property
    def tags(self) -> tuple[LoraTag, ...]:
        """The tags in the order of the (first) prompt."""
        return self.prompts[0].tags if self.prompts else ()

    @property
    def active(self) -> bool:
        """Whether the model shows this now: not restored, and not replaced by a later `apply`."""
        with owned(self._model) as state:
            return state.holder is self._token

    def at(self, step: int, steps: int, sigma: float | None = None) -> None:
        """Say which step of how many comes next, from 0: for loops of your own, without a diffusers pipeline.

        Changes strengths that vary; nothing where none does, or where a later `apply` has replaced this one.
        """
        if self._clock is not None:
            self._clock.at(Moment(step, steps, sigma))

    def restore(self) -> None:
        """Give every weight its original back. Does nothing where a later `apply` has replaced this one."""
        with owned(self._model) as state:
            if state.holder is self._token:
                state.restore()

    def __enter__(self) -> Applied[Text]:
        """Take the model for this thread, and apply again if it was restored or replaced in the meantime."""
        with ExitStack() as stack:
            state = stack.enter_context(owned(self._model))
            if state.holder is not self._token:
                _patch(state, self, Problems(strict=False))
            self._entered.append((state, stack.pop_all()))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Restore, and give the model back to other threads; any thread may do it, since the block has the model."""
        state, stack = self._entered.pop()
        with stack:
            if state.holder is self._token:
                state.restore()


def apply(
    model: Any,
    prompt: Text,
    *,
    negative_prompt: str | list[str] | None = None,
    loras: Loras = None,
    strict: bool = False,
    originals: Originals = "auto",
    negative_tags: Literal["words", "apply"] = "words",
    hires: bool = False,
    seeds: int | Sequence[int] | None = None,
    dialect: Dialect = "a1111",
    scope: Scope = "all",
    presets: Mapping[str, str] | None = None,
) -> Applied[Text]:
    """Patch `model` with the LoRAs that the prompt's tags name; return the clean prompt and what was done.

        with lora_runtime.apply(pipe, "a red circle <lora:watercolor:0.7>", loras="loras/") as applied:
            image = pipe(applied.prompt).images[0]

    `model` is a diffusers pipeline or any `torch.nn.Module`. A later `apply` on it replaces this one; leaving the
    `with` block, `applied.restore()` or `lora_runtime.restore(model)` undoes it, bit for bit. Of a list of prompts each
    image gets its own tags. `loras` is a folder, several, or a LoraCatalog; left out, it is LORA_RUNTIME_PATH, else
    `models/Lora` and `loras`.

    What a tag can say is in docs/syntax.md. Strengths that are the same throughout a picture go into the weights; those
    that depend on the step, the image, the side or the place act beside them while the pipeline runs, and follow its
    scheduler by themselves. `negative_tags="apply"` has tags of the negative prompt act on its side of the guidance;
    else they stay words, and are warned of. `hires` asks for the strengths of the second pass (`hr=`); `seeds`, one or
    one for each prompt, are what random block weights are drawn from. `dialect`, `scope`, `presets`: see parse_prompt.

    A tag that cannot be read, found or used costs only itself: it is logged and listed in `.diagnostics`; with
    `strict` it raises (TagSyntaxError, UnknownLoraError, …) and the model stays as it was. `originals` says where W₀
    is kept: "device" beside W′, "host" in host memory while W′ is written in place, "auto" by the free memory.
    Raises ModelError for what is no model, CatalogError for a folder that is not there.
    """
    read = partial(parse_prompt, strict=strict, dialect=dialect, scope=scope, presets=presets)
    prompts = tuple(map(read, [prompt] if isinstance(prompt, str) else prompt))
    problems = Problems(strict, prompts)
    texts = [text_at_all_steps(parsed, problems) for parsed in prompts]
    clean: Any = texts[0] if isinstance(prompt, str) else texts
    applied: Applied[Text] = Applied(view(model), clean, negative_prompt)
    applied.prompts = prompts
    applied._originals = originals
    lookup = Lookup(loras, problems, hires=hires)
    each = list(seeds) if isinstance(seeds, Sequence) else [seeds] * len(prompts)
    if len(each) != len(prompts):
        raise ValueError(f"{len(each)} seeds for {len(prompts)} prompts: give one for all, or one for each")
    requests = of_batch([lookup.requests(read, seed=seed) for read, seed in zip(prompts, each, strict=True)])
    if negative_tags == "apply" and negative_prompt is not None:
        alone = isinstance(negative_prompt, str)
        negatives = tuple(map(read, [negative_prompt] if isinstance(negative_prompt, str) else negative_prompt))
        problems.add(negatives)
        negative_texts = [text_at_all_steps(parsed, problems) for parsed in negatives]
        applied.negative_prompt = negative_texts[0] if alone else negative_texts
        applied._texts = Texts(applied._model.ask, texts, negative_texts)
        seeded = zip(negatives, each[:1] * len(negatives) if alone else each, strict=True)
        requests += of_batch([lookup.requests(read, seed=seed, side="negative") for read, seed in seeded])
    else:
        warn_of_negative_tags(negative_prompt, problems)
    lookup.done()
    warn_of_idle_tags(prompts, applied._model, problems)
    applied._requests = requests
    texts = [spelled_out(applied._model, requests, text) for text in texts]
    applied.prompt = texts[0] if isinstance(prompt, str) else texts
    with owned(applied._model) as state:
        _patch(state, applied, problems)
    applied.diagnostics = problems.diagnostics
    return applied


def restore(model: Any) -> None:
    """Give every weight of `model` its original back, and free the memory that is kept for the next `apply`."""
    with owned(view(model)) as state:
        state.restore(release=True)


def _patch(state: ModelState, applied: Applied[Any], problems: Problems) -> None:
    """Plan and patch; the model is as it was if anything fails."""
    model = applied._model
    plan = make_plan(applied._requests, state.targets(model), model.description, Limits(model))
    for request in applied._requests:
        for report in plan.report.loras:
            if report.sha256 == request.lora.sha256:
                problems.judgement(judge(report, request, model))
                problems.unmoved(report, request)
    state.holder = None
    state.apply(plan, applied._originals, compiled=bool(plan.lives) and model.compiled())
    applied._clock = Clock(model, state.live.stages, applied._images, applied._texts) if plan.lives else None
    if applied._clock is not None:
        state.live.until_then(applied._clock.stop)
    state.live.until_then(load_embeddings(model, applied._requests, problems.warning, problems.info))
    state.holder = applied._token
    applied.report = plan.report
