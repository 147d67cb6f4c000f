"""Requests → clones of a model and of its text encoders that show them.

What an earlier node asked is with the clone that it gave: it is asked again together with what comes now, in one sum,
so that the order of nodes changes no bit and a LoRA in two of them is the sum of its strengths.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import comfy.patcher_extension
from torch import nn

from lora_runtime.errors import LoraError, ModelError
from lora_runtime.hosted import HostKeeper, HostPatch, host_patches
from lora_runtime.limits import Limits
from lora_runtime.pipelines import ModelView
from lora_runtime.plan import Plan, make_plan
from lora_runtime.problems import show_what_can_be
from lora_runtime.report import Report
from lora_runtime.requests import Request
from lora_runtime.routes import modules_of
from lora_runtime.targets import Targets

from ...engine.judging import Source, cannot, judged, told
from ...prompts.notices import Notice
from .beside import Beside, Placed
from .denoiser import tell
from .models import names_of, patchers_of, view_of
from .originals import Originals
from .patches import add_patches, has_patches, is_written, take_patches_off
from .words import with_words

__all__ = ["Shown", "show"]

_log = logging.getLogger("lora_runtime")
_KEY = "lora_runtime"  # of all that is ours on a clone


@dataclass(frozen=True)
class Shown:
    """The MODEL and the CLIP that show what was asked, the report of all that they show, and what there is to say."""

    model: Any
    clip: Any
    report: Report
    notices: tuple[Notice, ...]


def show(model: Any, clip: Any, requests: Sequence[Request], source: Source) -> Shown:
    """Return clones of a MODEL and a CLIP, None for none, that show these requests and what they showed before.

    What cannot be shown is left out, and said; where nothing is asked the very objects come back.
    """
    if not requests:
        return Shown(model, clip, Report(), ())
    try:
        view = view_of(model, clip)
    except ModelError as error:
        return Shown(model, clip, Report(), (Notice("error", f"no LoRA is applied: {error}"),))
    notices: list[Notice] = []

    def present(asked: tuple[Request, ...]) -> Shown:
        return _present(model, clip, view, asked)

    def leave_out(error: LoraError, request: Request) -> None:
        notices.append(cannot(request, str(error), source))

    try:
        kept, shown = show_what_can_be(requests, present, leave_out)
    except Exception as error:
        _log.error("LoRAs cannot be applied together", exc_info=True)
        kept, shown, more = _one_by_one(model, clip, view, requests, error, source)
        notices += more
    notices += judged(shown.report, kept, view, source)
    notices += with_words(shown.clip, kept)
    return replace(shown, notices=(*dict.fromkeys(notices), *shown.notices))


def _one_by_one(
    model: Any, clip: Any, view: ModelView, requests: Sequence[Request], error: Exception, source: Source
) -> tuple[tuple[Request, ...], Shown, list[Notice]]:
    """Return those of the requests with which it works, the first ones first, and why it does not with each other."""
    kept: tuple[Request, ...] = ()
    shown = Shown(model, clip, Report(), ())
    notices = []
    for request in requests:
        try:
            shown = _present(model, clip, view, (*kept, request))
            kept = (*kept, request)
        except Exception as reason:
            message = f'"{request.lora.name}" cannot be applied: {told(reason)}'
            notices.append(cannot(request, message, source))
    return kept, shown, notices or [Notice("error", f"no LoRA is applied: {told(error)}")]


def _present(model: Any, clip: Any, view: ModelView, requests: tuple[Request, ...]) -> Shown:
    patchers = patchers_of(model, clip)
    asked = [(*_asked(patcher), *requests) for patcher in patchers]
    plan = make_plan(_together(asked), Targets(view), view.description, Limits(view, told=True))
    originals = Originals(patchers)
    keeper = HostKeeper((module for root in view.components.values() for module in modules_of(root)), originals)
    patches = host_patches(plan.assignments, keeper)
    written = [patch for patch in patches if is_written(patch.target.module)]
    for patch in written:
        patch.check(originals(patch.target.module, patch.name))
    shown_model = _clone(model, asked[0], written, plan, keeper)
    shown_clip = clip
    if clip is not None:
        shown_clip = clip.clone()
        shown_clip.patcher = _clone(clip.patcher, asked[1], written, plan, keeper)
    return Shown(shown_model, shown_clip, plan.report, tuple(_unwritten(patches)))


def _clone(
    patcher: Any, asked: tuple[Request, ...], patches: Iterable[HostPatch], plan: Plan, keeper: HostKeeper
) -> Any:
    """Return a clone of a patcher that shows what of a plan is about its model, and nothing else of ours."""
    clone = patcher.clone()
    inside: set[nn.Module] = {*modules_of(patcher.model)}
    own = [patch for patch in patches if patch.target.module in inside]
    if own or has_patches(clone):
        take_patches_off(clone)
        add_patches(clone, own, patcher.patches_uuid)
    clone.remove_injections(_KEY)
    for kind in (comfy.patcher_extension.WrappersMP.SAMPLER_SAMPLE, comfy.patcher_extension.WrappersMP.APPLY_MODEL):
        clone.remove_wrappers_with_key(kind, _KEY)
    lives = [live for live in plan.lives if live.module in inside]
    if lives:
        names = names_of(patcher.model, [live.module for live in lives])
        beside = Beside([Placed.of(names[id(live.module)], live, keeper) for live in lives])
        injection = comfy.patcher_extension.PatcherInjection(beside.inject, beside.eject)
        clone.set_injections(_KEY, [injection])
        tell(clone, beside)
    clone.set_attachments(_KEY, asked)
    return clone


def _asked(patcher: Any) -> tuple[Request, ...]:
    """Return what is asked of a clone of ours already."""
    return patcher.get_attachment(_KEY) or ()


def _together(asked: Sequence[Sequence[Request]]) -> Sequence[Request]:
    """Return what is asked of the denoiser, and of the text encoders if they are there, as one list."""
    of_model, *of_clip = asked
    if not of_clip:
        return of_model
    (of_text,) = of_clip
    alike = len(of_model) == len(of_text) and all(one is other for one, other in zip(of_model, of_text, strict=True))
    if alike and all(request.side is None for request in of_model):
        return of_model
    return [*map(_of_denoiser, of_model), *map(_of_text, of_text)]


def _of_denoiser(request: Request) -> Request:
    """Return what a request asks of the denoiser alone."""
    return replace(request, te=0.0)


def _of_text(request: Request) -> Request:
    """Return what a request asks of the text encoders alone: of whatever text they are wired to."""
    blocks = request.conditions.blocks
    alone = None if blocks is None else replace(blocks, inner=None, mid=None, outer=None)
    conditions = replace(request.conditions, blocks=alone, part=None)
    return replace(request, unet=0.0, conditions=conditions, side=None, images=None)


def _unwritten(patches: Iterable[HostPatch]) -> Iterable[Notice]:
    """Yield what to say about weights that the program never writes."""
    found = [str(patch.target) for patch in patches if not is_written(patch.target.module)]
    if found:
        which = ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
        yield Notice("warning", f"ComfyUI writes no parameters of a module that has others inside: {which} left out")
