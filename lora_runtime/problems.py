"""What went wrong with single tags: each costs only itself, and is said once."""

from __future__ import annotations

import copy
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from lora_runtime.clock import is_told_steps
from lora_runtime.errors import LoraError, NoMatchError
from lora_runtime.limits import NO_PLACE
from lora_runtime.pipelines import ModelView
from lora_runtime.plan import RUNS_ONCE
from lora_runtime.prompt import Diagnostic, LoraTag, Prompt, parse_prompt
from lora_runtime.prompt.brackets import without_edits
from lora_runtime.prompt.emphasis import has_emphasis
from lora_runtime.prompt.excerpt import quote
from lora_runtime.prompt.strength import Curve
from lora_runtime.prompt_embeds import knows_weights
from lora_runtime.report import LoraReport
from lora_runtime.requests import Request

__all__ = [
    "Images",
    "Problems",
    "found_in_calls",
    "judge",
    "show_what_can_be",
    "text_at_all_steps",
    "uncut",
    "warn_of_emphasis",
    "warn_of_idle_files",
    "warn_of_idle_tags",
    "warn_of_negative_tags",
]

Shown = TypeVar("Shown")
Images = frozenset[int] | None  # of a batch of prompts; None: all of them

logger = logging.getLogger("lora_runtime")


class Problems:
    """Collects what went wrong with single tags: a diagnostic and a log line each, or with `strict` an error."""

    def __init__(self, strict: bool, prompts: Sequence[Prompt] = ()) -> None:
        self.strict = strict
        self._said: dict[Diagnostic, Images] = {}  # each once, in order, and which images it is about
        self._sources: dict[tuple[int, int], str] = {}  # by the span of a tag: the prompt that it is in
        self._images: Images = None
        self.add(prompts)

    def of(self, images: Images) -> Problems:
        """Return this same collection for what is about some images of a batch alone."""
        part = copy.copy(self)
        part._images = images
        return part

    @property
    def diagnostics(self) -> tuple[Diagnostic, ...]:
        """All that was noted, in order."""
        return tuple(self._said)

    @property
    def said(self) -> Mapping[Diagnostic, Images]:
        """The same, with the images that each is about."""
        return dict(self._said)

    def add(self, prompts: Sequence[Prompt]) -> None:
        """Take note of what could not be read in these prompts."""
        for prompt in prompts:
            for tag in prompt.tags:
                self._sources.setdefault(tag.span, prompt.source)
            for diagnostic in prompt.diagnostics:
                self._note(diagnostic, prompt.source)

    def acting(self, prompts: Sequence[Prompt]) -> Iterator[LoraTag]:
        """Yield the tags of prompts that no error has cost so far: of another there is no more to say."""
        here = self._images
        lost = {
            said.span
            for said, images in self._said.items()
            if said.severity == "error" and (here is None or images is None or here & images)
        }
        yield from (tag for prompt in prompts for tag in prompt.tags if tag.span not in lost)

    def error(self, error: LoraError, span: tuple[int, int] = (0, 0)) -> None:
        """Take note of an error that costs one tag, or raise it."""
        if self.strict:
            raise error
        self._note(Diagnostic("error", span, str(error)))

    def warning(self, message: str, hint: str = "", span: tuple[int, int] = (0, 0)) -> None:
        """Take note of what the user should know."""
        self._note(Diagnostic("warning", span, message, hint))

    def info(self, message: str, span: tuple[int, int] = (0, 0)) -> None:
        """Take note of what the user may like to know."""
        self._note(Diagnostic("info", span, message))

    def judgement(self, diagnostic: Diagnostic | None) -> None:
        """Take note of what `judge` says, or raise NoMatchError."""
        if diagnostic is not None and diagnostic.severity == "error":
            self.error(NoMatchError(diagnostic.message), diagnostic.span)
        elif diagnostic is not None:
            self._note(diagnostic)

    def unmoved(self, report: LoraReport, request: Request) -> None:
        """Take note of strengths that should vary and cannot, and of ranks that should be cut and cannot."""
        if (said := uncut(request)) is not None:
            self._note(said)
        for reason, count in report.fixed.items():
            weights = "1 weight" if count == 1 else f"{count} weights"
            message = f'"{report.name}" cannot vary on {weights}: {reason}'
            self._note(Diagnostic("info" if reason in (NO_PLACE, RUNS_ONCE) else "warning", request.span, message))

    def _note(self, diagnostic: Diagnostic, source: str | None = None) -> None:
        images = self._images
        if diagnostic in self._said:  # the same of another prompt of the batch
            known = self._said[diagnostic]
            self._said[diagnostic] = None if known is None or images is None else known | images
            return
        self._said[diagnostic] = images
        if diagnostic.severity != "info":
            hint = f" ({diagnostic.hint})" if diagnostic.hint else ""
            source = self._sources.get(diagnostic.span) if source is None else source
            logger.warning("%s", diagnostic.message + hint if source is None else diagnostic.format(source))


def found_in_calls(said: Mapping[str, str], requests: Iterable[Request]) -> Iterator[Diagnostic]:
    """Yield what calls of a model have shown of strengths that differ by row, place or step, once for each tag."""
    for request in requests:
        differs = {
            "rows": request.images is not None or request.side is not None or request.conditions.part is not None,
            "places": request.place is not None,
            "steps": request.by_step,
        }
        for message, of in said.items():
            if differs[of]:
                yield Diagnostic("warning", request.span, f'"{request.lora.name}": {message}')


def text_at_all_steps(prompt: Prompt, problems: Problems) -> str:
    """Return the clean text for a pipeline that encodes it once: without brackets that only say when tags act.

    Brackets with text in them stay, and are warned of: the pipeline reads them as words.
    """
    if prompt.scope != "edit":
        return prompt.text
    text, others = without_edits(prompt.text, prompt.tag_places)
    for edit in others:
        written = prompt.text[edit.start : edit.end]
        tag = next(
            (tag for tag, at in zip(prompt.tags, prompt.tag_places, strict=True) if edit.start < at < edit.end), None
        )
        place = prompt.source.find(written)
        span = tag.span if tag is not None else (place, place + len(written)) if place >= 0 else (0, 0)
        problems.warning(
            f"the text in {quote(written)} cannot change from step to step here; it reaches the text encoder as words",
            "take the brackets away, and leave only tags in them",
            span,
        )
    return text


def warn_of_emphasis(prompts: Sequence[Prompt], model: ModelView, problems: Problems) -> None:
    """Say so where a prompt weighs words for the WebUI: a pipeline of diffusers reads the brackets as words."""
    for image, prompt in enumerate(prompts):
        if model.ask("tokenizer") is None or not has_emphasis(prompt.text):
            continue
        message = "(word:1.2), ((word)) and BREAK reach the text encoder as words here"
        if knows_weights(model.ask):
            message += ': apply(…, weights="a1111") reads them as the WebUI does, for pipe(**applied.embeds)'
        else:
            message += ", and this model knows no weights of words"
        problems.of(frozenset({image})).info(message)


def warn_of_negative_tags(negative_prompt: str | list[str] | None, problems: Problems) -> None:
    """Warn where the negative prompt holds LoRA tags: they change nothing there but are read as words."""
    one = isinstance(negative_prompt, str)
    texts = [negative_prompt] if isinstance(negative_prompt, str) else negative_prompt or []
    for image, prompt in enumerate(map(parse_prompt, texts)):
        names = [tag.raw for tag in prompt.tags]
        names += [tag.raw for tag in prompt.others if tag.kind == "set"]
        if names:
            problems.of(None if one else frozenset({image})).warning(
                f"{', '.join(names)} in the negative prompt is not applied; it reaches the text encoder as words",
                "move it to the prompt, or delete it",
            )


def uncut(request: Request) -> Diagnostic | None:
    """Return what the user should know where a tag limits the rank (dyn=) of what has no ranks that could be cut."""
    if request.dyn is None:
        return None
    weights = [each for own in request.lora.adapters.values() for each in own if each.parameter == "weight"]
    whole = [each for each in weights if each.factors() is None]
    if not whole:
        return None
    kinds = ", ".join(sorted({each.algorithm for each in whole}))
    of = f"{len(whole)} of its {len(weights)} changes of weights"
    message = f'"{request.lora.name}": dyn= has no effect on {of} ({kinds}): only the ranks of a plain LoRA can be cut'
    return Diagnostic("warning" if len(whole) == len(weights) else "info", request.span, message)


def warn_of_idle_tags(prompts: Sequence[Prompt], model: ModelView, problems: Problems) -> None:
    """Warn of tags that are for a denoiser, or a part of the prompt, that this model does not have."""
    for tag in problems.acting(prompts):
        expert, part = tag.conditions.expert, tag.conditions.part
        if expert is not None and expert not in model.components:
            message = f'"{tag.name}" is for the denoiser "{expert}", which this model does not have'
            problems.warning(f"{message}: it changes none", f"the model has {', '.join(model.components)}", tag.span)
        if part:
            message = (
                f'"{tag.name}" belongs to part {part + 1} of a prompt with AND, which is not painted by itself here'
            )
            problems.warning(f"{message}: it does not act", "give each part a prompt of its own", tag.span)
    _tell_of_idle_steps(prompts, model, problems)


def warn_of_idle_files(
    prompts: Sequence[Prompt], requests: Sequence[Request], model: ModelView, problems: Problems
) -> None:
    """Warn of a file of a pair that is for a denoiser which this model does not have."""
    said = {tag.span for prompt in prompts for tag in prompt.tags if tag.conditions.expert is not None}
    for request in requests:
        expert = request.conditions.expert
        if expert is not None and expert not in model.components and request.span not in said:
            problems.of(request.images).warning(
                f'"{request.lora.name}" is for the denoiser "{expert}", which this model does not have: it changes '
                "nothing here",
                f"the model has {', '.join(model.components)}",
                request.span,
            )


def _tell_of_idle_steps(prompts: Sequence[Prompt], model: ModelView, problems: Problems) -> None:
    """Say so where a tag follows the steps and nothing tells which step it is: a warning where there can be none."""
    denoisers = [module for name, module in model.components.items() if not name.startswith("text_encoder")]
    if not denoisers or any(model.ask(name) is not None for name in ("scheduler", "prior_scheduler")):
        return
    for tag in problems.acting(prompts):
        if not isinstance(tag.unet, Curve) and not tag.conditions.when:
            continue
        message = f'"{tag.name}" follows the steps of a sampler, and'
        if any(map(is_told_steps, denoisers)):
            said = "it acts as at the first step until you say which it is with .at(step, steps)"
            problems.info(f"{message} this model comes without a scheduler: {said}", tag.span)
        else:
            problems.warning(
                f"{message} {model.description} is told no time step: it acts as at the first step throughout",
                "give it one strength, or say which step it is with .at(step, steps)",
                tag.span,
            )


def show_what_can_be(
    requests: Sequence[Request],
    show: Callable[[tuple[Request, ...]], Shown],
    leave_out: Callable[[LoraError, Request], None],
) -> tuple[tuple[Request, ...], Shown]:
    """Return the requests that can be shown together, and what `show` gives for them.

    `show` plans and applies, and leaves the model as it was where it raises. An error that names a file by `.sha256`
    costs the requests for that file: `leave_out` is told of each, and may raise; then the others are tried again. Any
    other error is raised.
    """
    kept = tuple(requests)
    while True:
        try:
            return kept, show(kept)
        except LoraError as error:
            sha256 = getattr(error, "sha256", "")
            lost = [request for request in kept if request.lora.sha256 == sha256]
            if not lost:
                raise
            for request in lost:
                leave_out(type(error)(f'LoRA "{request.lora.name}": {error}', sha256), request)
            kept = tuple(request for request in kept if request.lora.sha256 != sha256)


def judge(report: LoraReport, request: Request, model: ModelView) -> Diagnostic | None:
    """Return what the user should know about a file of which not all keys were used, or None.

    An error where nothing of it belongs to the model, a warning where it was made for a model of another family: such a
    file can fit in part by chance, since the first text encoder of SDXL is that of SD1. A warning too where keys of a
    file for this very model find no place; what belongs to a component that is not there is no more than worth a note.
    """
    if report.used == report.keys:
        return None
    family, span = request.lora.family, request.span
    if report.used == 0:
        made_for = "" if family == "unknown" else f"; it seems to be made for {family}"
        reason = next(iter(report.unused.values()), "it has no keys")
        message = f'LoRA "{report.name}" ({report.path}): none of its {report.keys} keys belongs to {model.description}'
        return Diagnostic("error", span, f"{message}{made_for}. Of its first key: {reason}")
    if "unknown" not in (family, model.family) and family != model.family:
        return Diagnostic(
            "warning",
            span,
            f'LoRA "{report.name}" seems to be made for {family}, this model is {model.family}: '
            f"{report.used} of {report.keys} keys fit and are applied",
            "use a file for this model",
        )
    return _partial(report, span)


_MAIN_REASONS = 3
_ELSEWHERE = re.compile(r"for \w+, which this \w+ does not have")  # what a file has for a component that is not loaded


def _partial(report: LoraReport, span: tuple[int, int]) -> Diagnostic | None:
    """Return how much of a file found no place, and the main reasons; None where all of it did."""
    reasons = Counter(report.unused.values())
    left = sum(reasons.values())
    if left == 0:
        return None
    main = "; ".join(f"{count} {_of_keys(reason)}" for reason, count in reasons.most_common(_MAIN_REASONS))
    more = len(reasons) - _MAIN_REASONS
    message = f'LoRA "{report.name}": {left} of its {report.keys} keys change nothing: {main}'
    message += f"; and {more} more reasons" if more > 0 else ""
    expected = all(_ELSEWHERE.fullmatch(reason) for reason in reasons)
    return Diagnostic("info" if expected else "warning", span, message, "all of them are in .report.loras[…].unused")


def _of_keys(reason: str) -> str:
    return reason if reason.startswith("for ") else f"({reason})"
