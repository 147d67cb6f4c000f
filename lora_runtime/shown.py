"""What each parameter and module shows: what the topmost of its owners asks.

An owner is one apply. Its scope is all that the model reaches, and it stands on all of it: a parameter of which it asks
nothing shows W₀. Who comes later stands above; when one leaves, what it stood on shows what the next one asks.

    apply, apply                the later replaces the earlier where it stands on the same, or on all of that and more
    with apply: with apply:     the inner stands on the outer; leaving it gives the outer's state again
    two pipelines, one encoder  the later stands on the earlier in the encoder, and nowhere else
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import cast

import torch

from lora_runtime.beside import Live, LiveModule
from lora_runtime.memory import OutOfMemory
from lora_runtime.memory_policy import Merging, Policy
from lora_runtime.owners import (
    LOCK,
    OWNERS,
    Owner,
    Teach,
    above,
    ask,
    drop,
    forget_words,
    is_on,
    is_uncovered,
    nothing,
    snapshot,
    unfollow,
)
from lora_runtime.plan import Plan
from lora_runtime.routes import give_back_copies
from lora_runtime.scopes import PATCHER, Scope
from lora_runtime.weights import Weight

__all__ = ["change", "clear", "enter", "leave", "show"]


def show(
    owner: Owner,
    scope: Scope,
    plan: Plan,
    policy: Policy,
    steps: Mapping[torch.device, Merging],
    *,
    compiled: bool = False,
    began: Callable[[Live], None] = nothing,
    teach: Teach | None = None,
) -> None:
    """Put an owner on top of its scope, with what a plan asks; earlier applies in it that are no blocks are replaced.

    If anything fails the owner is gone, and what it stood on shows what the next one asks; where even that fails, W₀.
    """
    if is_on(owner) and owner.scope is not None and not scope.covers(owner.scope):
        leave(owner)
    drop([other for other in snapshot() if other.scope is not None and other.scope.is_gone()])
    with LOCK:
        replaced = [other for other in OWNERS if other is not owner and _is_replaced(other, scope)]
        if owner in OWNERS:
            OWNERS.remove(owner)
    try:
        _step_out(owner)
        _replace(owner, replaced, scope)
        unfollow(owner)
        owner.scope, owner.policy, owner.steps, owner.compiled, owner.began = scope, policy, steps, compiled, began
        forget_words(owner)
        owner.teach = teach
        owner.whole, owner.asleep = True, False
        owner.key, owner.report, owner.targets = plan.key, plan.report, weakref.ref(scope.targets)
        ask(owner, plan)
        with LOCK:
            OWNERS.append(owner)
        if any(device.type != "cpu" for device in steps):
            scope.follow_moves(owner.following)
        _settle(scope, owner)
    except BaseException:
        drop([owner])
        try:
            _settle(scope)
        except Exception:
            clear(scope)
        raise


def change(
    owner: Owner, scope: Scope, plan: Plan, steps: Mapping[torch.device, Merging], *, teach: Teach | None = None
) -> None:
    """Have an owner ask for another plan in the place where it stands, below others or asleep."""
    forget_words(owner)
    owner.teach, owner.steps = teach, steps
    owner.key, owner.report = plan.key, plan.report
    ask(owner, plan)
    _settle(scope)


def _replace(owner: Owner, replaced: Sequence[Owner], scope: Scope) -> None:
    """Put owners to sleep that another one replaces, which takes over what acts beside the same modules."""
    for other in replaced:
        if other.handle() is None or other.line == owner.line:  # no other thread is about to enter it
            drop(other.replaced)
            other.replaced = []
        other.asleep = True
        if owner.live.count == 0 and other.scope is scope:
            owner.live, other.live = other.live, Live()  # what stays the same stays attached
    if owner.handle() is None:
        drop(owner.replaced)
        owner.replaced = []
    owner.replaced = [*(other for other in owner.replaced if other not in replaced), *replaced]


def _step_out(owner: Owner) -> None:
    """Let what an owner has replaced be replaced by what replaced the owner: threads may apply before they enter."""
    above = next((other for other in snapshot() if owner in other.replaced), None)
    if above is not None:
        above.replaced = [*(other for other in above.replaced if other is not owner), *owner.replaced]
        owner.replaced = []


def _is_replaced(other: Owner, scope: Scope) -> bool:
    return not other.entered and not other.asleep and other.scope is not None and scope.covers(other.scope)


def enter(owner: Owner) -> None:
    """Let an owner's `with` block begin: what it has replaced is under it again."""
    owner.entered = True
    for other in owner.replaced:
        other.asleep = False
    owner.replaced = []


def leave(owner: Owner) -> None:
    """Take an owner away: what it stood on shows what the next one asks. Safe to repeat; after a failure too."""
    if owner.scope is None or not is_on(owner):
        return
    owner.asleep = True
    try:
        _settle(owner.scope)
    except BaseException:
        owner.asleep = False  # it still shows in part: leaving can be tried again
        raise
    drop([owner])
    owner.entered = False


def clear(scope: Scope, *, release: bool = False) -> int:
    """Give all in a scope its original back, whoever asks what of it; return how many weights were patched."""
    weights = scope.weights()
    inside = [owner for owner in snapshot() if owner.scope is not None and owner.scope.meets(scope)]
    with LOCK:
        for owner in inside:
            owner.live.clear()
            forget_words(owner)
    _give_back_copies(scope, weights)
    count = PATCHER.restore(release=release, among=weights)
    for owner in inside:
        if scope.covers(cast("Scope", owner.scope)):
            drop([owner])
        else:
            owner.whole = owner.serials.isdisjoint(scope.serials)
            for weight in weights:
                weight.asks.pop(owner, None)
            for _, home in scope.homes():
                home.lives.pop(owner, None)
            with LOCK:
                _settle_beside(owner, force=True)
    return count


# ---- making it so ---------------------------------------------------------------------------------------------------


def _settle(scope: Scope, top: Owner | None = None) -> None:
    """Make all in a scope show what the topmost owner of each asks; `top` is that of all of it, where it is known."""
    weights = scope.weights()
    _give_back_copies(scope, weights)
    if top is not None:
        own = [weight for ref in top.asked if (weight := ref()) is not None and top in weight.asks]
        PATCHER.apply([weight.asks[top] for weight in own], top.policy, weights, own, top.steps)
    else:
        for owner, own in _by_owner(weights):
            asked = [] if owner is None else [weight.asks[owner] for weight in own if owner in weight.asks]
            if owner is None:
                PATCHER.apply(asked, among=own)
            else:
                PATCHER.apply(asked, owner.policy, own, steps=owner.steps, again=True)
    with LOCK:
        touched = [owner for owner in snapshot() if owner.scope is not None and owner.scope.meets(scope)]
        for owner in touched:
            _settle_beside(owner, force=owner is top)
        _settle_words(touched)


def _give_back_copies(scope: Scope, weights: Sequence[Weight]) -> None:
    """Let no change stay in layers that somebody has fused out of patched ones."""
    if any(weight.patched for weight in weights):
        with torch.no_grad():
            give_back_copies(scope.attentions(), PATCHER.original)


def _by_owner(weights: Sequence[Weight]) -> Iterator[tuple[Owner | None, list[Weight]]]:
    """Yield the weights that are patched or asked for, by the topmost owner of each."""
    owners = [(owner, owner.scope.serials) for owner in snapshot() if owner.scope is not None and not owner.asleep]
    found = [weight for weight in weights if weight.original is not None or weight.asks]
    if not owners:
        yield None, found
        return
    groups: dict[int, tuple[Owner | None, list[Weight]]] = {}
    for weight in found:
        serial, top = weight.serial, None
        for owner, serials in owners:
            if serial in serials:
                top = owner
                break
        groups.setdefault(id(top), (top, []))[1].append(weight)
    yield from groups.values()


def _settle_beside(owner: Owner, *, force: bool) -> None:
    """Let what an owner asks beside modules act where the owner is topmost; `force`: it is asked anew."""
    if not owner.beside and not owner.live.count:
        return
    over = [other.scope for other in above(owner) if not other.asleep and other.scope is not None]
    lives: list[LiveModule] = []
    asking = set(map(id, (home for reference in owner.beside if (home := reference()) is not None)))
    if not owner.asleep and owner.scope is not None and asking:
        for module, home in owner.scope.homes():
            live = home.lives.get(owner) if id(home) in asking else None
            if live is not None and not any(home.serial in scope.serials for scope in over):
                lives.append(replace(cast("LiveModule", live), module=module))
    if not force and len(lives) == owner.live.count:
        return
    if lives:
        _act(owner, lives)
        owner.began(owner.live)
    else:
        owner.live.clear()


def _act(owner: Owner, lives: Sequence[LiveModule]) -> None:
    """Let these act beside their modules; where a device runs out of memory, factors that stay there go first."""
    try:
        owner.live.apply(lives, PATCHER, compiled=owner.compiled)
        return
    except OutOfMemory:
        if not PATCHER.give_up_factors():
            raise
    owner.live.apply(lives, PATCHER, compiled=owner.compiled)  # what failed lay in the error's frames


def _settle_words(touched: Sequence[Owner]) -> None:
    """Let pipelines know the words of the topmost owners alone: two may bring the same word along."""
    owners = [owner for owner in touched if owner.teach is not None]
    topmost = [owner for owner in owners if is_on(owner) and is_uncovered(owner)]
    for owner in owners:
        if owner not in topmost:
            forget_words(owner)
    for owner in topmost:
        if owner.words is None and owner.teach is not None:
            owner.words = []
            try:
                owner.teach(owner.words)
            except BaseException:
                forget_words(owner)
                raise
