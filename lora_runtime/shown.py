"""What each parameter and module shows: what the topmost of its owners asks.

An owner is one apply. Its scope is all that the model reaches, and it stands on all of it: a parameter of which it asks
nothing shows W₀. Who comes later stands above; when one leaves, what it stood on shows what the next one asks.

    apply, apply                the later replaces the earlier where it stands on the same, or on all of that and more
    with apply: with apply:     the inner stands on the outer; leaving it gives the outer's state again
    two pipelines, one encoder  the later stands on the earlier in the encoder, and nowhere else

An owner keeps no model alive: what it asks lies with the parameters and modules of which it asks it.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple, cast

import torch
from torch import nn

from lora_runtime.beside import Live, LiveModule
from lora_runtime.copies import held_by
from lora_runtime.forecast import Step
from lora_runtime.memory import OutOfMemory
from lora_runtime.memory_policy import Choice, Decision, Held, Policy, decided_again
from lora_runtime.ownership import WAIT, Claim, claimed, current_line
from lora_runtime.pipelines import ModelView
from lora_runtime.plan import Plan
from lora_runtime.report import Kept, Report
from lora_runtime.routes import give_back_copies
from lora_runtime.scopes import PATCHER, Scope, known_of, scope_of
from lora_runtime.targets import Targets
from lora_runtime.weight_table import Home
from lora_runtime.weights import Weight

__all__ = ["ModelState", "Owner", "enter", "is_active", "is_on", "is_topmost", "leave", "owned"]


def _nothing(live: Live) -> None:
    return None


def _nothing_left() -> None:
    return None


def _never() -> bool:
    return False


Teach = Callable[[], Callable[[], None]]
_AUTO = Policy()


def _identities(plan: Plan) -> tuple[object, ...]:
    return tuple(assignment.identity for assignment in plan.assignments)


class _Decided(NamedTuple):
    """How an owner's plan was applied: what was asked, what of it is merged, and the step for each device."""

    asked: tuple[object, ...]
    merged: tuple[object, ...]
    policy: Policy
    choices: tuple[Choice, ...]

    def again(self, plan: Plan, policy: Policy, targets: Targets) -> Decision | None:
        """Return the same decision for the same plan; None for another."""
        asked = _identities(plan)
        if policy != self.policy or asked not in (self.asked, self.merged):
            return None
        return decided_again(self.choices, plan, targets if asked == self.asked else None)


def _kept(owner: Owner, decision: Decision) -> tuple[Kept, ...]:
    """Return what is kept on each device for an owner that is shown."""
    held = held_by(weight for reference in owner.asked if (weight := reference()) is not None)
    beside = owner.live.nbytes
    found = []
    for choice in decision.choices:
        kept, step, why = held.get(choice.device, Held()), choice.step, choice.why
        if step == "device" and kept.host > kept.device:
            step, why = "host", f"{choice.device} ran out of memory"
        found.append(Kept(str(choice.device), step, kept.device + beside[choice.device], kept.host, why))
    return tuple(found)


class Owner:
    """One apply: the scope that it stands on, and how it asks. The module's functions change it."""

    def __init__(self) -> None:
        self.scope: Scope | None = None
        self.policy = Policy()
        self.steps: Mapping[torch.device, Step] = {}  # how originals are kept, where it is decided
        self.decision: _Decided | None = None
        self.unfollow: Callable[[], None] | None = None  # while moves of the model are followed
        self.entered = False  # its `with` block is open: a later apply stands on it, and does not replace it
        self.asleep = False  # replaced, but to come back if what replaced it turns out to be a `with` block
        self.whole = True  # nobody has restored a part of what it asks
        self.live = Live()
        self.compiled = False
        self.began: Callable[[Live], None] = _nothing
        self.teach: Teach | None = None  # teaches the pipeline words, and returns what makes it forget them
        self.forget: Callable[[], None] | None = None  # while it knows them
        self.replaced: list[Owner] = []
        self.handle: Callable[[], object] = _nothing_left  # what can enter it, as long as that is there
        self.line = current_line()  # of calls, that it was made in
        self.asked: list[weakref.ref[Weight]] = []
        self.beside: list[weakref.ref[Home]] = []
        self.serials: frozenset[int] = frozenset()  # of all of which it asks something
        self.key: object = None  # equal only where the very same is asked
        self.report = Report()
        self.targets: Callable[[], Targets | None] = _nothing_left  # that it was planned for


_owners: list[Owner] = []  # the topmost last
# Of the list, and of what acts beside modules and which words are known: an owner that two others stand on in part is
# settled by both, who need not wait for each other. Who may change what the list is about is for claims to say.
_lock = threading.RLock()


def _above(owner: Owner) -> list[Owner]:
    with _lock:
        return _owners[_owners.index(owner) + 1 :] if owner in _owners else []


def _snapshot() -> list[Owner]:
    with _lock:
        return _owners[::-1]


def is_on(owner: Owner) -> bool:
    """Return whether an owner stands anywhere: not left, restored or replaced."""
    with _lock:
        return owner in _owners and not owner.asleep


def is_active(owner: Owner) -> bool:
    """Return whether all that an owner asks shows: of one that asks nothing, whether it is topmost."""
    if not is_on(owner) or not owner.whole or owner.scope is None:
        return False
    above = [other.scope for other in _above(owner) if not other.asleep and other.scope is not None]
    if not owner.serials:
        return not any(owner.scope.meets(scope) for scope in above)
    return all(owner.serials.isdisjoint(scope.serials) for scope in above)


# ---- coming and going -----------------------------------------------------------------------------------------------


def show(
    owner: Owner,
    scope: Scope,
    plan: Plan,
    policy: Policy,
    steps: Mapping[torch.device, Step],
    *,
    compiled: bool = False,
    began: Callable[[Live], None] = _nothing,
    teach: Teach | None = None,
) -> None:
    """Put an owner on top of its scope, with what a plan asks; earlier applies in it that are no blocks are replaced.

    If anything fails the owner is gone, and what it stood on shows what the next one asks; where even that fails, W₀.
    """
    if is_on(owner) and owner.scope is not None and not scope.covers(owner.scope):
        leave(owner)
    _drop([other for other in _snapshot() if other.scope is not None and other.scope.is_gone()])
    with _lock:
        replaced = [other for other in _owners if other is not owner and _is_replaced(other, scope)]
        if owner in _owners:
            _owners.remove(owner)
    _step_out(owner)
    for other in replaced:
        if other.handle() is None or other.line == owner.line:  # no other thread is about to enter it
            _drop(other.replaced)
            other.replaced = []
        other.asleep = True
        if owner.live.count == 0 and other.scope is scope:
            owner.live, other.live = other.live, Live()  # what stays the same stays attached
    if owner.handle() is None:
        _drop(owner.replaced)
        owner.replaced = []
    _unfollow(owner)
    owner.scope, owner.policy, owner.steps, owner.compiled, owner.began = scope, policy, steps, compiled, began
    _forget_words(owner)
    owner.teach = teach
    owner.replaced = [*(other for other in owner.replaced if other not in replaced), *replaced]
    owner.whole, owner.asleep = True, False
    owner.key, owner.report, owner.targets = plan.key, plan.report, weakref.ref(scope.targets)
    _ask(owner, plan)
    with _lock:
        _owners.append(owner)
    if any(device.type != "cpu" for device in steps):
        owner.unfollow = scope.follow_moves()
    try:
        _settle(scope, owner)
    except BaseException:
        _drop([owner])
        try:
            _settle(scope)
        except Exception:
            clear(scope)
        raise


def _step_out(owner: Owner) -> None:
    """Let what an owner has replaced be replaced by what replaced the owner: threads may apply before they enter."""
    above = next((other for other in _snapshot() if owner in other.replaced), None)
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
    _drop([owner])
    owner.entered = False


def clear(scope: Scope, *, release: bool = False) -> int:
    """Give all in a scope its original back, whoever asks what of it; return how many weights were patched."""
    weights = scope.weights()
    inside = [owner for owner in _snapshot() if owner.scope is not None and owner.scope.meets(scope)]
    with _lock:
        for owner in inside:
            owner.live.clear()
            _forget_words(owner)
    _give_back_copies(scope, weights)
    count = PATCHER.restore(release=release, among=weights)
    for owner in inside:
        if scope.covers(cast("Scope", owner.scope)):
            _drop([owner])
        else:
            owner.whole = owner.serials.isdisjoint(scope.serials)
            for weight in weights:
                weight.asks.pop(owner, None)
            for _, home in scope.homes():
                home.lives.pop(owner, None)
            with _lock:
                _settle_beside(owner, force=True)
    return count


def _ask(owner: Owner, plan: Plan) -> None:
    """Lay what a plan asks with the parameters and modules that it is asked of."""
    _forget(owner)
    for assignment in plan.assignments:
        weight = PATCHER.weight_of(assignment)
        weight.asks[owner] = assignment
        owner.asked.append(weakref.ref(weight))
    for live in plan.lives:
        home = PATCHER.home(live.module)
        home.lives[owner] = replace(live, module=_NO_MODULE)  # a module must not be kept by what is kept with it
        owner.beside.append(weakref.ref(home))
    serials = [found.serial for ref in owner.asked if (found := ref()) is not None]
    serials += [place.serial for ref in owner.beside if (place := ref()) is not None]
    owner.serials = frozenset(serials)


_NO_MODULE = nn.Identity()


def _plan_of(owner: Owner, scope: Scope) -> Plan | None:
    """Return what an owner asks, as a plan; None where a part of it is gone."""
    assignments = [weight.asks.get(owner) for reference in owner.asked if (weight := reference()) is not None]
    lives: list[LiveModule] = []
    if owner.beside:
        asked = ((module, home.lives.get(owner)) for module, home in scope.homes())
        lives = [replace(cast("LiveModule", live), module=module) for module, live in asked if live is not None]
    found = tuple(assignment for assignment in assignments if assignment is not None)
    if len(found) != len(owner.asked) or len(lives) != len(owner.beside):
        return None
    return Plan(found, owner.report, tuple(lives), owner.key)


def _forget(owner: Owner) -> None:
    for weight in [weight for reference in owner.asked if (weight := reference()) is not None]:
        weight.asks.pop(owner, None)
    for home in [home for reference in owner.beside if (home := reference()) is not None]:
        home.lives.pop(owner, None)
    owner.asked, owner.beside, owner.serials = [], [], frozenset()


def _drop(owners: Iterable[Owner]) -> None:
    """Forget owners that show nothing any more, and what they have replaced."""
    waiting = list(owners)
    for owner in waiting:  # it grows on the way
        waiting += owner.replaced
        owner.replaced = []
        _unfollow(owner)
        with _lock:
            owner.live.clear()
            _forget_words(owner)
            _forget(owner)
            if owner in _owners:
                _owners.remove(owner)


def _unfollow(owner: Owner) -> None:
    if owner.unfollow is not None:
        owner.unfollow()
        owner.unfollow = None


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
                PATCHER.apply(asked, owner.policy, own, steps=owner.steps)
    with _lock:
        touched = [owner for owner in _snapshot() if owner.scope is not None and owner.scope.meets(scope)]
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
    owners = [(owner, owner.scope.serials) for owner in _snapshot() if owner.scope is not None and not owner.asleep]
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
    above = [other.scope for other in _above(owner) if not other.asleep and other.scope is not None]
    lives: list[LiveModule] = []
    asking = set(map(id, (home for reference in owner.beside if (home := reference()) is not None)))
    if not owner.asleep and owner.scope is not None and asking:
        for module, home in owner.scope.homes():
            live = home.lives.get(owner) if id(home) in asking else None
            if live is not None and not any(home.serial in scope.serials for scope in above):
                lives.append(replace(cast("LiveModule", live), module=module))
    if not force and len(lives) == owner.live.count:
        return
    if lives:
        owner.live.apply(lives, PATCHER, compiled=owner.compiled)
        owner.began(owner.live)
    else:
        owner.live.clear()


def _settle_words(touched: Sequence[Owner]) -> None:
    """Let pipelines know the words of the topmost owners alone: two may bring the same word along."""
    owners = [owner for owner in touched if owner.teach is not None]
    topmost = [owner for owner in owners if is_on(owner) and _is_uncovered(owner)]
    for owner in owners:
        if owner not in topmost:
            _forget_words(owner)
    for owner in topmost:
        if owner.forget is None and owner.teach is not None:
            owner.forget = owner.teach()


def is_topmost(owner: Owner) -> bool:
    """Return whether all that an owner stands on shows what it asks, which may be nothing."""
    return is_on(owner) and owner.whole and _is_uncovered(owner)


def _is_uncovered(owner: Owner) -> bool:
    above = [other.scope for other in _above(owner) if not other.asleep and other.scope is not None]
    return owner.scope is not None and not any(owner.scope.meets(scope) for scope in above)


def _forget_words(owner: Owner) -> None:
    if owner.forget is not None:
        owner.forget()
        owner.forget = None


# ---- for those who hold a model for a while -------------------------------------------------------------------------


class ModelState:
    """A model that is held: what it is, and what it shows."""

    def __init__(self, scope: Scope, claim: Claim) -> None:
        self.scope = scope
        self.claim = claim

    @property
    def targets(self) -> Targets:
        """The places of the model by every name that files use."""
        return self.scope.targets

    def planned(self, key: object) -> Plan | None:
        """Return the plan that somebody on just this model has had for this key, or None."""
        for owner in _snapshot():
            if owner.scope is self.scope and not owner.asleep:
                if key is None or owner.key != key or not owner.whole or owner.targets() is not self.scope.targets:
                    return None
                return _plan_of(owner, self.scope)
        return None

    def is_shown(self, owner: Owner) -> bool:
        """Return whether all that an owner asks shows, and nobody has written over it."""
        return is_active(owner) and PATCHER.intact(weight for weight in self.scope.weights() if owner in weight.asks)

    def show(
        self,
        owner: Owner,
        plan: Plan,
        policy: Policy = _AUTO,
        *,
        compiled: Callable[[], bool] = _never,
        began: Callable[[Live], None] = _nothing,
        teach: Teach | None = None,
    ) -> Plan:
        """Make the model show a plan, as far as there is memory for it; see `show`. Return what it shows.

        What the report says of memory is added; where no weight could be copied, adapters act beside their modules.
        `compiled`: whether there may be compiled code of the model.
        """
        without: frozenset[Step] = frozenset()
        while True:
            decision, known = self._decide(plan, policy, without)
            try:
                lives = bool(decision.plan.lives) and compiled()
                steps = decision.merging
                show(owner, self.scope, decision.plan, policy, steps, compiled=lives, began=began, teach=teach)
            except OutOfMemory:
                if policy.originals != "auto" or all(choice.step == "beside" for choice in decision.choices):
                    raise
            else:
                owner.decision = _Decided(_identities(plan), _identities(decision.plan), policy, decision.choices)
                memory = _kept(owner, decision) if known is None else known
                owner.report = replace(decision.plan.report, memory=memory)
                return replace(decision.plan, report=owner.report)
            without = frozenset({"device", "host"})  # only here is the memory of what was begun free again

    def _decide(self, plan: Plan, policy: Policy, without: frozenset[Step]) -> tuple[Decision, tuple[Kept, ...] | None]:
        """Return how to apply a plan, and what is kept for it where just that is shown already.

        What is shown already stays as it is, however much is free by now.
        """
        for owner in _snapshot():
            known = owner.decision
            if owner.scope is self.scope and not owner.asleep and known is not None and not without:
                again = known.again(plan, policy, self.scope.targets)
                if again is not None:
                    return again, owner.report.memory
        weights = map(PATCHER.weight_of, plan.assignments)
        return policy.decide(plan, self.scope.targets, held_by(weights), without), None

    def restore(self, *, release: bool = False) -> int:
        """Give every weight its original back; return how many were patched. `release` frees the buffers too."""
        return clear(self.scope, release=release)


@contextmanager
def owned(
    view: ModelView, what: str = "", wait: float | None = WAIT, also: Iterable[Claim] = ()
) -> Iterator[ModelState]:
    """Hold a model for the time of a `with` block; wait for it."""
    while True:
        known = known_of(view)
        with claimed(known, what or view.description, wait, also) as claim:
            scope = scope_of(view)
            if scope is known:  # else it is new, or who had it has put other modules in
                yield ModelState(scope, claim)
                return
