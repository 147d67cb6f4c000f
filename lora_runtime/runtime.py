"""The whole line: a prompt with tags changes a model, and leaves no trace."""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Generic, Literal, TypeVar

from lora_runtime.beside import Live
from lora_runtime.clock import Clock
from lora_runtime.embeddings import load_embeddings, spelled_out
from lora_runtime.errors import LoraError
from lora_runtime.held import ModelState, owned
from lora_runtime.idle_blocks import warn_of_idle_blocks
from lora_runtime.limits import Limits
from lora_runtime.lookup import Lookup, Loras
from lora_runtime.memory_policy import Originals, Policy
from lora_runtime.owners import Owner, is_active, is_on, is_topmost
from lora_runtime.ownership import WAIT, Claim, claimed, mine, would_wait
from lora_runtime.pipelines import ModelView, WeakView, view
from lora_runtime.plan import Plan, key_of, make_plan
from lora_runtime.problems import (
    Problems,
    found_in_calls,
    judge,
    show_what_can_be,
    text_at_all_steps,
    warn_of_idle_tags,
    warn_of_negative_tags,
)
from lora_runtime.prompt import Diagnostic, LoraTag, Prompt, parse_prompt
from lora_runtime.prompt.strength import Moment
from lora_runtime.prompt.tags import Dialect
from lora_runtime.prompt.tags import Scope as TagScope
from lora_runtime.report import Report
from lora_runtime.requests import Request, of_batch
from lora_runtime.scopes import known_of, scope_of
from lora_runtime.shown import enter, leave
from lora_runtime.texts import Texts

__all__ = ["Applied", "Loras", "apply", "restore"]

logger = logging.getLogger("lora_runtime")

Text = TypeVar("Text", str, list[str], None)


class Applied(Generic[Text]):
    """What one `apply` did. Leaving its `with` block, or `restore()`, undoes it. It keeps no model alive.

    Inside a `with` (or `async with`) block the model belongs to the task or thread that entered it, and to what that
    has started in its own context (child tasks, `asyncio.to_thread`): an `apply` by any other waits. Whoever is given
    this object may ask it and restore with it.
    """

    def __init__(self, model: ModelView, prompt: Text, negative_prompt: str | list[str] | None) -> None:
        """Hold the clean text; `apply` fills in the rest."""
        self._prompt: Text = prompt
        self.negative_prompt = negative_prompt
        """The negative prompt: as it came in, or with `negative_tags="apply"` without its tags."""
        self.prompts: tuple[Prompt, ...] = ()
        """Each prompt as it was read, with the places of its tags."""
        self._diagnostics: tuple[Diagnostic, ...] = ()
        self._report = Report()
        self._owner = self._new_owner()
        self._model = WeakView(model)
        self._waiting: ModelView | None = None  # until it is entered, where somebody else had the model at the time
        self._problems = Problems(strict=False)
        self._requests: tuple[Request, ...] = ()
        self._policy = Policy()
        self._wait: float | None = WAIT
        self._clock: Clock | None = None
        self._moment: Moment | None = None  # said last with `at`
        self._texts: Texts | None = None  # told apart where negative tags act
        self._given = mine()  # claims under which it was made
        self._entered: list[tuple[Claim, Owner | None]] = []

    def __repr__(self) -> str:
        """Return what is applied to what, and whether it shows."""
        state = "waiting" if self._waiting is not None else "active" if self.active else "not active"
        if self._waiting is not None:
            return f"<Applied {self._prompt!r} to {self._model.description}: {state}>"
        files = ", ".join(lora.name for lora in self._report.loras) or "no LoRA"
        weights = f"{self._report.weights} weights, {self._report.live} modules beside"
        return f"<Applied {self._prompt!r} to {self._model.description}: {files}; {weights}; {state}>"

    def __del__(self) -> None:
        """Say so where it never came to be applied."""
        if self.__dict__.get("_waiting") is not None:
            logger.warning(
                "%s was held by others when apply was called from a coroutine, and was never entered: nothing was "
                'applied. Use "async with lora_runtime.apply(...)"',
                self._model.description,
            )

    @property
    def prompt(self) -> Text:
        """The text without its tags: a list where a list came in."""
        self._settle()
        return self._prompt

    @property
    def report(self) -> Report:
        """What went where, and for each key that found no place the reason."""
        self._settle()
        return self._report

    @property
    def diagnostics(self) -> tuple[Diagnostic, ...]:
        """What could not be read, found or used, with its place in the prompt.

        Of a list what could not be read comes first, prompt by prompt, and what is common to all has its place in the
        first. What only a call of the model shows, such as rows that cannot be told, comes last, after that call.
        """
        self._settle()
        said = {} if self._clock is None else self._clock.said
        return self._diagnostics + tuple(found_in_calls(said, self._requests))

    @property
    def _images(self) -> int:
        return max(1, len(self.prompts))

    @property
    def tags(self) -> tuple[LoraTag, ...]:
        """The tags in the order of the (first) prompt."""
        return self.prompts[0].tags if self.prompts else ()

    @property
    def active(self) -> bool:
        """Whether the model shows all of this now: not restored, not replaced or covered by a later `apply`."""
        return any(map(is_active, self._owners()))

    def at(self, step: int, steps: int, sigma: float | None = None) -> None:
        """Say which step of how many comes next, from 0: for loops of your own, without a diffusers pipeline.

        Changes strengths that vary; nothing where none does, or where a later `apply` has replaced this one.
        """
        if self._clock is not None:
            self._moment = Moment(step, steps, sigma)
            self._clock.at(self._moment)

    def restore(self) -> None:
        """Undo this: every weight shows what it would without it. Does nothing where it was replaced or undone."""
        self._waiting = None
        for owner in self._owners():
            if owner.scope is not None and is_on(owner):
                with claimed(owner.scope, self._model.description, self._wait, self._claims()):
                    leave(owner)

    def __enter__(self) -> Applied[Text]:
        """Take the model, and apply again if it was restored, replaced or covered in the meantime."""
        view, entered = self._view(), False
        while not entered:
            claim = Claim(known_of(view), self._what())
            try:
                claim.take(self._wait, self._given)
                entered = self._enter(view, claim)
            finally:
                if not entered:
                    claim.release()
        return self

    async def __aenter__(self) -> Applied[Text]:
        """Take the model as `__enter__` does, while the event loop goes on."""
        view, entered = self._view(), False
        while not entered:
            claim = Claim(known_of(view), self._what())
            try:
                await claim.take_later(self._wait, self._given)
                entered = self._enter(view, claim)
            finally:
                if not entered:
                    claim.release()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Undo it, and give the model to others; any thread may do it, since the block has the model."""
        claim, owner = self._entered.pop()
        try:
            if owner is not None:
                leave(owner)
        finally:
            claim.release()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Undo it, and give the model to others."""
        self.__exit__(kind, error, traceback)

    def _enter(self, view: ModelView, claim: Claim) -> bool:
        """Begin a block; False where the model has other modules than when it was claimed."""
        scope = scope_of(view)
        if scope is not claim.scope:
            return False
        owner: Owner | None = None
        if not any(map(is_topmost, self._owners())):
            # One that is under others already stays there: this block stands above them.
            owner = self._new_owner() if self._owner.entered else self._owner
            self._show(ModelState(scope, claim), view, owner)
        elif not self._owner.entered:
            owner = self._owner
        if owner is not None:
            enter(owner)
        self._entered.append((claim, owner))
        return True

    def _new_owner(self) -> Owner:
        owner = Owner()
        owner.handle = weakref.ref(self)
        return owner

    def _owners(self) -> list[Owner]:
        return [self._owner, *(owner for _, owner in self._entered if owner is not None and owner is not self._owner)]

    def _claims(self) -> tuple[Claim, ...]:
        return (*self._given, *(claim for claim, _ in self._entered))

    def _view(self) -> ModelView:
        return self._model.view() if self._waiting is None else self._waiting

    def _what(self) -> str:
        text = self._prompt if isinstance(self._prompt, str) else "; ".join(self._prompt or ())
        return f'"{text[:60]}" on {self._model.description}'

    def _settle(self) -> None:
        """Apply now what had to wait for others: whoever looks at it without a block needs it done."""
        if self._waiting is not None:
            self._apply(self._waiting)

    def _apply(self, view: ModelView) -> None:
        with owned(view, self._what(), self._wait, self._given) as state:
            self._show(state, view, self._owner)

    def _show(self, state: ModelState, view: ModelView, owner: Owner) -> None:
        """Plan and patch; the model is as it was if anything fails."""
        problems, self._problems = self._problems, Problems(strict=False)
        self._waiting = self._moment = None

        def show(requests: tuple[Request, ...]) -> Plan:
            self._requests = requests
            plan, teach = self._plan(state, view, problems), self._teacher(problems)
            return state.show(owner, plan, self._policy, compiled=view.compiled, began=self._began, teach=teach)

        def leave_out(error: LoraError, request: Request) -> None:
            problems.error(error, request.span)

        _, plan = show_what_can_be(self._requests, show, leave_out)
        if not plan.lives:
            self._clock = None
        self._report = plan.report
        self._diagnostics = self._diagnostics or problems.diagnostics

    def _plan(self, state: ModelState, view: ModelView, problems: Problems) -> Plan:
        """Return what to do, and take note of what cannot be done."""
        plan = state.planned(key_of(self._requests))
        if plan is None or plan.report.model != view.description:
            plan = make_plan(self._requests, state.targets, view.description, Limits(view))
        for request in self._requests:
            for report in plan.report.loras:
                if report.sha256 == request.lora.sha256:
                    problems.judgement(judge(report, request, view))
                    problems.unmoved(report, request)
        return plan

    def _teacher(self, problems: Problems) -> Callable[[], Callable[[], None]] | None:
        """Return what teaches the pipeline the words that files bring along, None where they bring none."""
        requests = self._requests
        if not any(request.lora.embeddings for request in requests):
            return None
        return lambda: load_embeddings(self._model.view(), requests, problems.warning, problems.info)

    def _began(self, live: Live) -> None:
        """Follow the steps of the model from now on, for as long as this acts beside it."""
        self._clock = Clock(self._model.view(), live.stages, self._images, self._texts)
        live.until_then(self._clock.stop)
        if self._moment is not None:  # it was covered meanwhile, in the middle of somebody's own loop
            self._clock.at(self._moment)


def apply(
    model: Any,
    prompt: Text,
    *,
    negative_prompt: str | list[str] | None = None,
    loras: Loras = None,
    strict: bool = False,
    originals: Originals = "auto",
    device_memory: int | str | None = None,
    host_memory: int | str | None = None,
    negative_tags: Literal["words", "apply"] = "words",
    hires: bool = False,
    seeds: int | Sequence[int] | None = None,
    dialect: Dialect = "a1111",
    scope: TagScope = "all",
    presets: Mapping[str, str] | None = None,
    wait: float | None = WAIT,
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
    `strict` it raises (TagSyntaxError, UnknownLoraError, …) and the model stays as it was.

    `originals` says where W₀ is kept while W′ shows: "device" (W′ is bound beside it), "host" (in host memory; W′ is
    written in its place), "inplace" (a copy on the device, W′ in its place: addresses stay, as CUDA graphs need it),
    "beside" (no weight is copied: adapters act beside the modules, within the rounding of activations; the few that
    cannot are treated as "host"). "auto" takes the first of device, host and beside for which there is memory, goes on
    with the next where it runs out, and says in `.report.memory` which and why. `device_memory` and `host_memory` are
    the most bytes (or text such as "24GB", "24GiB") that copies and factors may take on each device and in host memory:
    MemoryBudgetError where that is not enough, ValueError for what is no size.

    Where another task or thread has the model, `apply` waits for `wait` seconds (None: for ever) and then raises
    ModelBusyError, which names the holder. In a coroutine it never stops the event loop: "async with" waits.
    Raises ModelError for what is no model, CatalogError for a folder that is not there.
    """
    policy = Policy.of(originals, device_memory, host_memory)
    read = partial(parse_prompt, strict=strict, dialect=dialect, scope=scope, presets=presets)
    prompts = tuple(map(read, _prompts(prompt)))
    problems = Problems(strict, prompts)
    texts = [text_at_all_steps(parsed, problems) for parsed in prompts]
    looked_at = view(model)
    applied: Applied[Text] = Applied(looked_at, _as_asked(prompt, texts), negative_prompt)
    applied.prompts = prompts
    applied._policy, applied._wait = policy, wait
    applied._problems = problems
    lookup = Lookup(loras, problems, hires=hires)
    each = _each(seeds, prompts, "seeds")
    requests = of_batch([lookup.requests(read, seed=seed) for read, seed in zip(prompts, each, strict=True)])
    if negative_tags == "apply" and negative_prompt is not None:
        alone = isinstance(negative_prompt, str)
        negatives = tuple(map(read, _prompts(negative_prompt)))
        if not alone:
            _each(negatives, prompts, "negative prompts")
        problems.add(negatives)
        negative_texts = [text_at_all_steps(parsed, problems) for parsed in negatives]
        applied.negative_prompt = negative_texts[0] if alone else negative_texts
        applied._texts = Texts(looked_at.ask, texts, negative_texts)
        seeded = zip(negatives, [next(iter(each), None)] if alone else each, strict=True)
        requests += of_batch([lookup.requests(read, seed=seed, side="negative") for read, seed in seeded])
    else:
        warn_of_negative_tags(negative_prompt, problems)
    lookup.done()
    warn_of_idle_tags(prompts, looked_at, problems)
    warn_of_idle_blocks(prompts, looked_at, problems)
    applied._requests = requests
    applied._prompt = _as_asked(prompt, [spelled_out(looked_at, requests, text) for text in texts])
    if _running() and would_wait(known_of(looked_at), applied._given):
        applied._waiting = looked_at  # for `async with`, or for whoever looks at what was done
    else:
        applied._apply(looked_at)
    return applied


def restore(model: Any) -> None:
    """Give every weight of `model` its original back, and free the memory that is kept for the next `apply`."""
    with owned(view(model)) as state:
        state.restore(release=True)


def _prompts(prompt: Any) -> list[str]:
    """Return the prompts of a call: none for None, as a pipeline takes it where it is given embeddings."""
    if prompt is None:
        return []
    return [prompt] if isinstance(prompt, str) else list(prompt)


def _as_asked(prompt: Any, texts: list[str]) -> Any:
    """Return texts in the form in which the prompts came: one, a list, or None."""
    if prompt is None:
        return None
    return texts[0] if isinstance(prompt, str) else texts


def _each(values: Any, prompts: Sequence[Any], what: str) -> list[Any]:
    """Return one value for each prompt: those of a sequence, or the one for all."""
    found = list(values) if isinstance(values, Sequence) and not isinstance(values, str) else [values] * len(prompts)
    if len(found) != len(prompts):
        raise ValueError(f"{len(found)} {what} for {len(prompts)} prompts: give one for all, or one for each")
    return found


def _running() -> bool:
    """Return whether an event loop runs in this thread: what would wait here must not stop it."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
