"""The applies that a model shows, and what each asks: the stack that `shown` settles.

An owner is one apply. Its scope is all that the model reaches, and it stands on all of it: a parameter of which it asks
nothing shows W₀. It keeps no model alive: what it asks lies with the parameters and modules of which it asks it.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple, cast

import torch
from torch import nn

from lora_runtime.beside import Live, LiveModule
from lora_runtime.hooks import Endings, end_all
from lora_runtime.memory_policy import Choice, Decision, Merging, Policy, decided_again
from lora_runtime.ownership import current_line
from lora_runtime.plan import Plan
from lora_runtime.report import Report
from lora_runtime.scopes import PATCHER, Scope
from lora_runtime.targets import Targets
from lora_runtime.weight_table import Home
from lora_runtime.weights import Weight

__all__ = [
    "LOCK",
    "OWNERS",
    "Decided",
    "Owner",
    "Teach",
    "above",
    "ask",
    "drop",
    "forget_words",
    "is_active",
    "is_on",
    "is_topmost",
    "is_uncovered",
    "nothing",
    "plan_of",
    "snapshot",
    "unfollow",
]

Teach = Callable[[Endings], None]
"""Teaches a pipeline words, and returns what makes it forget them."""


def nothing(live: Live) -> None:
    """Do nothing, where nobody follows what begins to act."""


def _nothing_left() -> None:
    return None


def _identities(plan: Plan) -> tuple[object, ...]:
    return tuple(assignment.identity for assignment in plan.assignments)


class Decided(NamedTuple):
    """How an owner's plan was applied: what was asked, what of it is merged, and the step for each device."""

    asked: tuple[object, ...]
    merged: tuple[object, ...]
    policy: Policy
    choices: tuple[Choice, ...]

    @classmethod
    def of(cls, plan: Plan, decision: Decision, policy: Policy) -> Decided:
        """Return what was decided for a plan."""
        return cls(_identities(plan), _identities(decision.plan), policy, decision.choices)

    def again(self, plan: Plan, policy: Policy, targets: Targets) -> Decision | None:
        """Return the same decision for the same plan; None for another."""
        asked = _identities(plan)
        if policy != self.policy or asked not in (self.asked, self.merged):
            return None
        return decided_again(self.choices, plan, targets if asked == self.asked else None)


class Owner:
    """One apply: the scope that it stands on, and how it asks. The functions here and in `shown` change it."""

    def __init__(self) -> None:
        self.scope: Scope | None = None
        self.policy = Policy()
        self.steps: Mapping[torch.device, Merging] = {}  # how originals are kept, where it is decided
        self.decision: Decided | None = None
        self.following: Endings = []  # while moves of the model are followed
        self.entered = False  # its `with` block is open: a later apply stands on it, and does not replace it
        self.asleep = False  # replaced, but to come back if what replaced it turns out to be a `with` block
        self.whole = True  # nobody has restored a part of what it asks
        self.live = Live()
        self.compiled = False
        self.began: Callable[[Live], None] = nothing
        self.teach: Teach | None = None  # teaches the pipeline words
        self.words: Endings | None = None  # what makes it forget them, while it knows them
        self.replaced: list[Owner] = []
        self.handle: Callable[[], object] = _nothing_left  # what can enter it, as long as that is there
        self.line = current_line()  # of calls, that it was made in
        self.asked: list[weakref.ref[Weight]] = []
        self.beside: list[weakref.ref[Home]] = []
        self.serials: frozenset[int] = frozenset()  # of all of which it asks something
        self.key: object = None  # equal only where the very same is asked
        self.report = Report()
        self.targets: Callable[[], Targets | None] = _nothing_left  # that it was planned for


OWNERS: list[Owner] = []  # the topmost last
# Of the list, and of what acts beside modules and which words are known: an owner that two others stand on in part is
# settled by both, who need not wait for each other. Who may change what the list is about is for claims to say.
LOCK = threading.RLock()


def above(owner: Owner) -> list[Owner]:
    """Return who came later than an owner, the topmost last."""
    with LOCK:
        return OWNERS[OWNERS.index(owner) + 1 :] if owner in OWNERS else []


def snapshot() -> list[Owner]:
    """Return all owners as they are now, the topmost first."""
    with LOCK:
        return OWNERS[::-1]


def is_on(owner: Owner) -> bool:
    """Return whether an owner stands anywhere: not left, restored or replaced."""
    with LOCK:
        return owner in OWNERS and not owner.asleep


def is_active(owner: Owner) -> bool:
    """Return whether all that an owner asks shows: of one that asks nothing, whether it is topmost."""
    if not is_on(owner) or not owner.whole or owner.scope is None:
        return False
    over = [other.scope for other in above(owner) if not other.asleep and other.scope is not None]
    if not owner.serials:
        return not any(owner.scope.meets(scope) for scope in over)
    return all(owner.serials.isdisjoint(scope.serials) for scope in over)


def is_topmost(owner: Owner) -> bool:
    """Return whether all that an owner stands on shows what it asks, which may be nothing."""
    return is_on(owner) and owner.whole and is_uncovered(owner)


def is_uncovered(owner: Owner) -> bool:
    """Return whether nobody stands above an owner anywhere in its scope."""
    over = [other.scope for other in above(owner) if not other.asleep and other.scope is not None]
    return owner.scope is not None and not any(owner.scope.meets(scope) for scope in over)


def ask(owner: Owner, plan: Plan) -> None:
    """Lay what a plan asks with the parameters and modules that it is asked of."""
    forget(owner)
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


def plan_of(owner: Owner, scope: Scope) -> Plan | None:
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


def forget(owner: Owner) -> None:
    """Take back what an owner asks from the parameters and modules that it lies with."""
    for weight in [weight for reference in owner.asked if (weight := reference()) is not None]:
        weight.asks.pop(owner, None)
    for home in [home for reference in owner.beside if (home := reference()) is not None]:
        home.lives.pop(owner, None)
    owner.asked, owner.beside, owner.serials = [], [], frozenset()


def drop(owners: Iterable[Owner]) -> None:
    """Forget owners that show nothing any more, and what they have replaced."""
    waiting = list(owners)
    for owner in waiting:  # it grows on the way
        waiting += owner.replaced
        owner.replaced = []
        unfollow(owner)
        with LOCK:
            owner.live.clear()
            forget_words(owner)
            forget(owner)
            if owner in OWNERS:
                OWNERS.remove(owner)


def unfollow(owner: Owner) -> None:
    """Let moves of an owner's model go unseen again."""
    end_all(owner.following)


def forget_words(owner: Owner) -> None:
    """Let the pipeline forget the words that an owner has taught it."""
    if owner.words is not None:
        end_all(owner.words)
        owner.words = None
