"""What one `apply` did to a model: what it says, how it changes in place, and how it is undone."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Literal, TypeVar

from torch import Tensor

from lora_runtime.asked import Asking
from lora_runtime.beside import Live
from lora_runtime.clock import Clock
from lora_runtime.embeddings import load_embeddings
from lora_runtime.errors import LoraError, ModelError, UnknownLoraError
from lora_runtime.held import ModelState, owned
from lora_runtime.infotext import infotext_of
from lora_runtime.limits import NO_PLACE, Limits
from lora_runtime.lookup import catalog_for
from lora_runtime.memory_policy import Policy
from lora_runtime.metadata import trigger_words
from lora_runtime.optimizers import watch_optimizers
from lora_runtime.owners import Owner, Teach, is_active, is_on, is_topmost
from lora_runtime.ownership import WAIT, Claim, claimed, mine
from lora_runtime.pipelines import ModelView, WeakView
from lora_runtime.plan import RUNS_ONCE, Plan, key_of, make_plan
from lora_runtime.problems import (
    Images,
    Problems,
    found_in_calls,
    judge,
    show_what_can_be,
)
from lora_runtime.prompt import Diagnostic, LoraTag, Prompt, Strength
from lora_runtime.prompt.named import Asked, named_tags
from lora_runtime.prompt.strength import Moment
from lora_runtime.prompt_embeds import Emphasis, chunk_counts, embeds_of
from lora_runtime.report import Report
from lora_runtime.requests import Request
from lora_runtime.scopes import known_of, scope_of
from lora_runtime.shown import enter, leave
from lora_runtime.tag_files import files_of
from lora_runtime.texts import Texts

__all__ = ["Applied", "Text"]

logger = logging.getLogger("lora_runtime")

Text = TypeVar("Text", str, list[str], None)


@dataclass(eq=False)
class _Block:
    """A `with` block that is open: its claim, and what it takes away at its end; None where it found that shown."""

    claim: Claim
    owner: Owner | None
    ends: bool = False


_ending = threading.Lock()  # of two blocks that end at a time one hands on what the other takes away


class Applied(Generic[Text]):
    """What one `apply` did. Leaving its `with` block, or `restore()`, undoes it. It keeps no model alive.

    Inside a `with` (or `async with`) block the model belongs to the task or thread that entered it, and to what that
    has started in its own context (child tasks, `asyncio.to_thread`): an `apply` by any other waits. Whoever is given
    this object may ask it and restore with it.
    """

    def __init__(self, model: ModelView, prompt: Text, negative_prompt: str | list[str] | None) -> None:
        """Hold the clean text; `apply` fills in the rest."""
        self._prompt: Text = prompt
        self.prompt_2: str | list[str] | None = None
        """The text for the second text encoder without its tags, where one was given."""
        self.prompt_3: str | list[str] | None = None
        self.negative_prompt = negative_prompt
        """The negative prompt: as it came in, or with `negative_tags="apply"` without its tags."""
        self.prompts: tuple[Prompt, ...] = ()
        """Each prompt as it was read, with the places of its tags."""
        self._said: Mapping[Diagnostic, Images] = {}  # and which images it is about
        self._report = Report()
        self._owner = self._new_owner()
        self._model = WeakView(model)
        self._waiting: ModelView | None = None  # until it is entered, where somebody else had the model at the time
        self._problems = Problems(strict=False)
        self._asking = Asking((), named_tags({}))
        self._weights: Emphasis | None = None
        self._clip_skip = 0
        self._embeds: dict[str, Tensor] | None = None
        self._chunks: tuple[int, ...] | None = None  # of the texts of each image
        self._requests: tuple[Request, ...] = ()
        self._policy = Policy()
        self._wait: float | None = WAIT
        self._strict = False
        self._clock: Clock | None = None
        self._moment: Moment | None = None  # said last with `at`
        self._texts: Texts | None = None  # told apart where negative tags act
        self._given = mine()  # claims under which it was made
        self._entered: list[_Block] = []

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
        return tuple(self._said) + tuple(found_in_calls(self._said_in_calls, self._requests))

    def diagnostics_of(self, image: int) -> tuple[Diagnostic, ...]:
        """Return those of `diagnostics` that are about one image of a list of prompts, counted from 0, or about all."""
        self._settle()
        said = [diagnostic for diagnostic, images in self._said.items() if images is None or image in images]
        own = [request for request in self._requests if request.images is None or image in request.images]
        return tuple(said) + tuple(found_in_calls(self._said_in_calls, own))

    def report_of(self, image: int) -> Report:
        """Return what of `report` is about one image of a list of prompts, counted from 0."""
        return self.report.of_image(image)

    @property
    def _said_in_calls(self) -> Mapping[str, Literal["rows", "places", "steps"]]:
        """What calls of the model have shown so far."""
        return {} if self._clock is None else self._clock.said

    @property
    def calls(self) -> tuple[tuple[int, ...], ...]:
        """Which images of a list of prompts, counted from 0, one call of the pipeline can paint as each would be alone.

        All of them, unless: with `weights` texts are of other numbers of chunks, and a call has one for all; a file
        brings words along, which all prompts would know; or what is for some images alone cannot act on these alone,
        which for some models only a call shows, so that this may change at the first step.
        """
        self._settle()
        chunks, apart = self._chunk_counts(), self._mixes_badly
        groups: dict[object, list[int]] = {}
        for image in range(self._images):
            own = [number for number, request in enumerate(self._requests) if image in (request.images or ())]
            loras = (self._requests[number].lora for number in own)
            words = frozenset(lora.sha256 for lora in loras if lora.embeddings)
            groups.setdefault((chunks[image], words, tuple(own) if apart else ()), []).append(image)
        return tuple(map(tuple, groups.values()))

    @property
    def _mixes_badly(self) -> bool:
        """Whether something that is for some images alone was left out where it would act if it were for all."""
        unmoved = {reason for lora in self._report.loras if lora.images is not None for reason in lora.fixed}
        return bool(unmoved - {RUNS_ONCE, NO_PLACE}) or "rows" in self._said_in_calls.values()

    def _chunk_counts(self) -> tuple[int, ...]:
        """Return how many chunks the longer of the two texts of each image is of; 1 where no weights were asked for."""
        if self._weights is None or self._images == 1:
            return (1,) * self._images
        if self._chunks is None:
            ask, prompts = self._view().ask, _listed(self._prompt)
            counts = chunk_counts(ask, prompts), chunk_counts(ask, self._negatives)
            self._chunks = tuple(map(max, *counts))
        return self._chunks

    @property
    def _images(self) -> int:
        return max(1, len(self.prompts))

    @property
    def tags(self) -> tuple[LoraTag, ...]:
        """The tags in the order of the (first) prompt, then the adapters that were named."""
        return self._asking.tags_of(0)

    @property
    def strengths(self) -> dict[str, Strength | tuple[Strength, Strength]]:
        """The strength by name, as a tag or `adapters` has it; a pair (te, unet) where the two differ."""
        return self._asking.strengths

    def set(self, name: str, strength: Asked) -> None:
        """Change the strength of one LoRA in place, at the cost of a switch: a number, or what `adapters` may have.

        A number or a pair leaves blocks, steps and place of the tag as they are. Where several tags have the name,
        the first in each prompt gets the strength and the others go; tags of the negative prompt stay. Where this is
        not shown now, the change shows when it is. UnknownLoraError where nothing has that name, TagSyntaxError for
        what cannot be read.
        """
        (asked,) = named_tags({name: strength}, strict=True).tags
        try:
            asking = self._asking.with_strength(asked, whole=isinstance(strength, (str, Mapping)))
        except KeyError:
            names = tuple(self._asking.strengths)
            known = f"there are {', '.join(names)}" if names else "there are none"
            raise UnknownLoraError(
                f'"{name}" is in no tag and not in adapters, so it has no strength to change: {known}', name, names
            ) from None
        problems = Problems(self._strict)
        for images, prompts in asking.by_image:
            problems.of(images).add(prompts)
        before = self._asking, self._requests, self._problems, self._said, self._moment
        owner = next((owner for owner in reversed(self._owners()) if is_active(owner)), None)
        covered = [other for other in self._owners() if other is not owner and is_on(other)]
        try:
            self._requests = asking.requests(problems)
            self._asking, self._problems, self._said = asking, problems, {}
            if owner is not None:
                view = self._view()
                with owned(view, self._what(), self._wait, self._claims()) as state:
                    self._show(state, view, owner)
            for other in covered:
                if other.scope is not None:
                    with claimed(other.scope, self._what(), self._wait, self._claims()) as claim:
                        self._change(ModelState(other.scope, claim), other)
        except BaseException:
            self._asking, self._requests, self._problems, self._said, _ = before
            raise
        if before[-1] is not None:  # in the middle of somebody's own loop
            self.at(before[-1].step, before[-1].steps, before[-1].sigma)

    @property
    def triggers(self) -> dict[str, tuple[str, ...]]:
        """By name, the words that a file was trained with (at most as many as `list` shows) and the prompt lacks."""
        self._settle()
        said = " ".join(prompt.text for image in self._asking.prompts for prompt in image).casefold()
        found = {}
        for request in self._requests:
            words = trigger_words(request.lora.metadata)
            if lacking := tuple(word for word in words if word.casefold() not in said):
                found[request.lora.name] = lacking
        return found

    def infotext(self, image: int = 0, /, **parameters: Any) -> str:
        """Return what the WebUI writes into a picture: the prompt of an image, from 0, with its tags, and parameters.

        `parameters` by the names of a pipeline (`num_inference_steps`, `guidance_scale`, `seed`, `width`, `height`) or
        by the WebUI's own with `_` for blanks (`Sampler="Euler a"`). The files' hashes are added, so that
        `read_infotext` finds them under other names. `lora_runtime.infotext` has the format.
        """
        self._settle()
        catalog = catalog_for(self._asking.loras)
        hashes = {}
        for asked in self._asking.tags_of(image):
            try:
                for tag, entry in files_of(catalog, asked):
                    hashes[tag.name] = catalog.hashes(entry).sha256_of_tensors
            except LoraError:  # it is in the diagnostics
                continue
        negative = next(iter(self._negatives[image:]), "")
        return infotext_of(self._asking.written(image), negative, parameters, hashes)

    @property
    def active(self) -> bool:
        """Whether the model shows all of this now: not restored, not replaced or covered by a later `apply`."""
        return any(map(is_active, self._owners()))

    @property
    def embeds(self) -> dict[str, Tensor]:
        """What the pipeline's call takes in place of the texts, where `weights` was given: `pipe(**applied.embeds)`.

        `prompt_embeds` and `negative_prompt_embeds` (prompts, tokens, width), for SDXL the pooled ones too, made by the
        text encoders while they show this. ModelError where they do not, or the pipeline is of another kind.
        """
        self._settle()
        if self._weights is None:
            raise ModelError('no weights were asked for: apply(…, weights="a1111")')
        if self._embeds is None:
            if not self.active:
                raise ModelError("the text encoders do not show this any more: ask within the `with` block")
            ask, prompts = self._view().ask, _listed(self._prompt)
            self._embeds = embeds_of(ask, prompts, self._negatives, self._weights, self._clip_skip)
        return dict(self._embeds)

    @property
    def _negatives(self) -> list[str]:
        """The negative prompt of each image, "" where there is none."""
        found = _listed(self.negative_prompt) or [""]
        return found * self._images if len(found) == 1 else found

    def at(self, step: int | None, steps: int = 1, sigma: float | None = None) -> None:
        """Say which step of how many comes next, from 0: for loops of your own, without a diffusers pipeline.

        None leaves it to the pipeline's scheduler again. Changes strengths that vary; nothing where none does, or where
        a later `apply` has replaced this one.
        """
        if self._clock is not None:
            self._moment = None if step is None else Moment(step, steps, sigma)
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
                    try:
                        self._give_back(claim)
                    except BaseException:  # an interrupt, and nobody else would
                        self._give_back(claim)
                        raise
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
                    try:
                        self._give_back(claim)
                    except BaseException:  # an interrupt, and nobody else would
                        self._give_back(claim)
                        raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Undo it, and give the model to others; any thread may do it, since the block has the model."""
        try:
            block = self._own_block()
            self._leave(block)
        except BaseException:  # an interrupt: what it cut short is done now, or the LoRAs would come back
            block = self._own_block()
            self._leave(block)
            raise
        finally:
            try:
                self._give_back(block.claim)
            except BaseException:
                self._give_back(block.claim)
                raise

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
        self._entered.append(_Block(claim, owner))  # first: an interrupt may come in between
        if owner is not None:
            enter(owner)
        return True

    def _own_block(self) -> _Block:
        """Return the block that is being left: the last whose claim this line of calls has, else the last of all."""
        held = mine()
        own = [block for block in self._entered if block.claim in held]
        return own[-1] if own else self._entered[-1]

    def _leave(self, block: _Block) -> None:
        """Take away what a block shows; where another of this apply stands on it still, that one will."""
        with _ending:
            block.ends = True
            heir = next((other for other in self._entered if not other.ends and other.owner is None), None)
            if heir is not None and block.owner is not None:
                heir.owner, block.owner = block.owner, None
        if block.owner is not None:
            leave(block.owner)

    def _give_back(self, claim: Claim) -> None:
        """Forget a block and release its claim; safe to repeat, which whoever calls this does where it raises.

        What the block could not take away is replaced by the next apply, as without a block.
        """
        for block in [block for block in self._entered if block.claim is claim]:
            self._entered.remove(block)
            if block.owner is not None:
                block.owner.entered = False
        claim.release()  # last: then another may enter

    def _new_owner(self) -> Owner:
        owner = Owner()
        owner.handle = weakref.ref(self)
        return owner

    def _owners(self) -> list[Owner]:
        owners: list[Owner] = [block.owner for block in self._entered if block.owner is not None]
        return [self._owner, *(owner for owner in owners if owner is not self._owner)]

    def _claims(self) -> tuple[Claim, ...]:
        return (*self._given, *(block.claim for block in self._entered))

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
        self._waiting = self._moment = self._embeds = self._chunks = None

        def show(requests: tuple[Request, ...]) -> Plan:
            self._requests = requests
            plan, teach = self._plan(state, view, problems), self._teacher(problems)
            return state.show(owner, plan, self._policy, compiled=view.compiled, began=self._began, teach=teach)

        def leave_out(error: LoraError, request: Request) -> None:
            problems.of(request.images).error(error, request.span)

        _, plan = show_what_can_be(self._requests, show, leave_out)
        if not plan.lives:
            self._clock = None
        if plan.assignments:
            watch_optimizers()
        self._report = plan.report
        self._said = self._said or problems.said

    def _change(self, state: ModelState, owner: Owner) -> None:
        """Have an owner below others ask what is asked now; what cannot be done was said, or will be."""
        silent = Problems(strict=False)
        plan = state.change(owner, self._plan(state, self._view(), silent), self._policy, teach=self._teacher(silent))
        if not any(map(is_active, self._owners())):
            self._report = plan.report

    def _plan(self, state: ModelState, view: ModelView, problems: Problems) -> Plan:
        """Return what to do, and take note of what cannot be done."""
        plan = state.planned(key_of(self._requests))
        if plan is None or plan.report.model != view.description:
            plan = make_plan(self._requests, state.targets, view.description, Limits(view))
        for request in self._requests:
            own = problems.of(request.images)
            for report in plan.report.loras:
                if report.sha256 == request.lora.sha256 and report.images == request.images:
                    own.judgement(judge(report, request, view))
                    own.unmoved(report, request)
        return plan

    def _teacher(self, problems: Problems) -> Teach | None:
        """Return what teaches the pipeline the words that files bring along, None where they bring none."""
        requests = self._requests
        if not any(request.lora.embeddings for request in requests):
            return None
        return lambda endings: load_embeddings(self._model.view(), requests, problems.warning, problems.info, endings)

    def _began(self, live: Live) -> None:
        """Follow the steps of the model from now on, for as long as this acts beside it."""
        view = self._model.view()
        self._clock = Clock(view, live.stages, self._images, self._texts)
        live.until_then(self._clock.stop)
        self._clock.start(view)
        if self._moment is not None:  # it was covered meanwhile, in the middle of somebody's own loop
            self._clock.at(self._moment)


def _listed(text: str | list[str] | None) -> list[str]:
    """Return texts as a list."""
    return [text] if isinstance(text, str) else list(text or ())
