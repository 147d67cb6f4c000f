"""What is asked of one file: strengths, and the conditions under which they hold; and such requests added up."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from lora_runtime.lora import Lora
from lora_runtime.prompt import LoraTag
from lora_runtime.prompt.strength import Curve, Moment, Strength, at
from lora_runtime.prompt.tags import ALWAYS, Conditions
from lora_runtime.regions import Place
from lora_runtime.stage import Side, Varying

__all__ = ["BEFORE", "Request", "add_up", "of_batch", "request_of"]


@dataclass(frozen=True, slots=True)
class Request:
    """One file and the strengths asked for: `te` for text encoders, `unet` for the denoiser.

    `images` are the prompts of a batch that ask for it (None: all), `side` says whether only the prompt or only the
    negative prompt does; `place` is where in the picture, and `seed` what random block weights are drawn from.
    """

    lora: Lora
    te: Strength
    unet: Strength
    dyn: int | None = None
    span: tuple[int, int] = (0, 0)  # of its tag in the prompt
    conditions: Conditions = ALWAYS
    images: frozenset[int] | None = None
    side: Side | None = None
    place: Place | None = None
    seed: int | None = None

    @property
    def by_step(self) -> bool:
        """Whether the strength for some module of the denoiser may change from step to step."""
        rules = () if self.conditions.blocks is None else self.conditions.blocks.rules
        parts = (self.unet, *(rule.ratio for rule in rules))
        return bool(self.conditions.when) or any(isinstance(part, Curve) for part in parts)

    def scheduled(self, component: str, path: str) -> bool:
        """Return whether the strength for a module is asked to change from step to step."""
        blocks = self.conditions.blocks
        ratio = 1.0 if blocks is None else blocks.ratio(component, path, self.seed)
        own = self.te if component.startswith("text_encoder") else self.unet
        return any(isinstance(part, Curve) and len({key.value for key in part.keys}) > 1 for part in (own, ratio))

    def strength(self, component: str, path: str = "") -> float | Varying:
        """Return the strength for a module of a component, by their diffusers names: a number where it is constant."""
        text, conditions = component.startswith("text_encoder"), self.conditions
        if not text and conditions.expert not in (None, component):
            return 0.0
        strengths = [self.te if text else self.unet]
        if conditions.blocks is not None:
            instead = None if text else conditions.blocks.strength(component, path)
            strengths = [strengths[0] if instead is None else instead]
            strengths.append(conditions.blocks.ratio(component, path, self.seed))
        if text:  # it runs once, before the first step
            strengths = [at(strength, BEFORE) for strength in strengths]
        curves = tuple(strength for strength in strengths if isinstance(strength, Curve))
        constant = math.prod(strength for strength in strengths if not isinstance(strength, Curve))
        if constant == 0:
            return 0.0
        varying = Varying(
            constant,
            curves,
            () if text else conditions.when,
            self.images,
            self.side,
            conditions.part,
            None if text or self.place is None or self.place.whole else self.place,
        )
        return constant if varying == Varying(constant) else varying


def request_of(
    tag: LoraTag,
    lora: Lora,
    *,
    hires: bool = False,
    seed: int | None = None,
    side: Side | None = None,
    place: Place | None = None,
) -> Request:
    """Return what a tag asks for, in the first pass or the second; the seed counts where something is drawn from it."""
    conditions = tag.conditions
    te, unet = tag.te, tag.unet
    if hires:
        te = te if conditions.hires_te is None else conditions.hires_te
        unet = unet if conditions.hires_unet is None else conditions.hires_unet
    drawn = conditions.blocks is not None and conditions.blocks.random
    return Request(lora, te, unet, tag.dyn, tag.span, conditions, None, side, place, seed if drawn else None)


BEFORE = Moment(0, 2)  # where a schedule begins


def add_up(requests: Iterable[Request]) -> list[Request]:
    """Return one request for each file under the same conditions, constant strengths summed, by content hashes."""
    groups: dict[tuple[object, ...], list[Request]] = {}
    for request in requests:
        curves = tuple(strength for strength in (request.te, request.unet) if isinstance(strength, Curve))
        groups.setdefault((*_conditions(request), repr(curves)), []).append(request)
    summed = []
    for _, same in sorted(groups.items(), key=lambda item: item[0]):
        if isinstance(same[0].te, Curve) or isinstance(same[0].unet, Curve):
            summed += sorted(same, key=lambda request: repr((request.te, request.unet)))
            continue
        # sorted: a float sum must not depend on the order of the tags either
        te, unet = sum(sorted(map(_number, (r.te for r in same)))), sum(sorted(map(_number, (r.unet for r in same))))
        summed.append(replace(same[0], te=te, unet=unet))
    return summed


def of_batch(batch: Sequence[Iterable[Request]]) -> tuple[Request, ...]:
    """Return the requests of the prompts of a batch: each with the images that ask for it, or None where all do."""
    images: dict[tuple[object, ...], tuple[Request, list[int]]] = {}
    for image, requests in enumerate(batch):
        for request in add_up(requests):
            key = (*_conditions(request), repr((request.te, request.unet)))
            images.setdefault(key, (request, []))[1].append(image)
    return tuple(
        request if len(asking) == len(batch) else replace(request, images=frozenset(asking))
        for request, asking in images.values()
    )


def _conditions(request: Request) -> tuple[object, ...]:
    """Return what requests have in common that differ in nothing but their strengths; such can be sorted."""
    return (
        request.lora.sha256,
        request.dyn is not None,
        request.dyn or 0,
        () if request.images is None else tuple(sorted(request.images)),
        request.side or "",
        repr((request.conditions, request.place, request.seed)),
    )


def _number(strength: Strength) -> float:
    assert not isinstance(strength, Curve)
    return strength
