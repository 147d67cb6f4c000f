"""A model that is held for a while: what it is, what it shows, and how what is asked of it is applied."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch

from lora_runtime.beside import Live
from lora_runtime.copies import held_by
from lora_runtime.forecast import Step
from lora_runtime.memory import OutOfMemory
from lora_runtime.memory_policy import Decision, Held, Merging, Policy
from lora_runtime.owners import Decided, Owner, Teach, is_active, nothing, plan_of, snapshot
from lora_runtime.ownership import WAIT, Claim, claimed
from lora_runtime.pipelines import ModelView
from lora_runtime.plan import Plan
from lora_runtime.report import Kept
from lora_runtime.scopes import PATCHER, Scope, known_of, scope_of
from lora_runtime.shown import change, clear, show
from lora_runtime.targets import Targets
from lora_runtime.weights import Weight

__all__ = ["ModelState", "owned"]

_AUTO = Policy()
_NOT_MERGED = "nothing of it is merged"


def _never() -> bool:
    return False


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
        for owner in snapshot():
            if owner.scope is self.scope and not owner.asleep:
                if key is None or owner.key != key or not owner.whole or owner.targets() is not self.scope.targets:
                    return None
                return plan_of(owner, self.scope)
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
        began: Callable[[Live], None] = nothing,
        teach: Teach | None = None,
    ) -> Plan:
        """Make the model show a plan, as far as there is memory for it; see `show`. Return what it shows.

        What the report says of memory is added; where no weight could be copied, adapters act beside their modules.
        `compiled`: whether there may be compiled code of the model.
        """
        without: frozenset[Step] = frozenset()
        while True:
            decision, known = self._decide(plan, policy, without)
            before = set() if known is not None else _ways(map(PATCHER.weight_of, plan.assignments)).keys()
            try:
                lives = bool(decision.plan.lives) and compiled()
                steps = decision.merging
                show(owner, self.scope, decision.plan, policy, steps, compiled=lives, began=began, teach=teach)
            except OutOfMemory:
                if policy.originals != "auto" or all(choice.step == "beside" for choice in decision.choices):
                    raise
            else:
                owner.decision = Decided.of(plan, decision, policy)
                owner.steps = _as_kept(owner, steps)
                memory = known or ()
                if known is None or any(kept.factor_bytes for kept in known):  # factors may be given up meanwhile
                    memory = _kept(owner, decision, before, memory)
                owner.report = replace(decision.plan.report, memory=memory)
                return replace(decision.plan, report=owner.report)
            without = frozenset({"device", "host"})  # only here is the memory of what was begun free again

    def change(self, owner: Owner, plan: Plan, policy: Policy, *, teach: Teach | None = None) -> Plan:
        """Have an owner that others cover ask for another plan, which shows once it is uncovered; return the plan."""
        decision, _ = self._decide(plan, policy, frozenset())
        change(owner, self.scope, decision.plan, decision.merging, teach=teach)
        owner.decision = Decided.of(plan, decision, policy)
        return decision.plan

    def _decide(self, plan: Plan, policy: Policy, without: frozenset[Step]) -> tuple[Decision, tuple[Kept, ...] | None]:
        """Return how to apply a plan, and what is kept for it where just that is shown already.

        What is shown already stays as it is, however much is free by now.
        """
        for owner in snapshot():
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


Way = tuple[torch.device, Step]  # where a patched weight is, and how its original is kept


def _ways(weights: Iterable[Weight]) -> dict[Way, list[Weight]]:
    """Return the patched of these weights by how each is kept."""
    found: dict[Way, list[Weight]] = {}
    for weight in weights:
        if weight.patched:
            found.setdefault((weight.parameter.device, weight.step), []).append(weight)
    return found


def _as_kept(owner: Owner, steps: Mapping[torch.device, Merging]) -> dict[torch.device, Merging]:
    """Return how the weights of an owner are kept, where that is one way on a device, else how it was decided."""
    ways = _ways(weight for reference in owner.asked if (weight := reference()) is not None)
    found = dict(steps)
    for device, merging in steps.items():
        kept = {step for there, step in ways if there == device}
        if len(kept) == 1:
            found[device] = merging._replace(step=kept.pop())
    return found


def _kept(owner: Owner, decision: Decision, before: Collection[Way], known: Sequence[Kept] = ()) -> tuple[Kept, ...]:
    """Return what is kept on each device for an owner that is shown; `before`: the ways that there were already.

    `known`: what was kept for just the same before, whose reasons stay.
    """
    reasons = {(kept.device, kept.step): kept.why for kept in known}
    weights = [weight for reference in owner.asked if (weight := reference()) is not None]
    ways, beside = _ways(weights), owner.live.nbytes
    found = []
    for choice in decision.choices:
        here = {step: own for (device, step), own in ways.items() if device == choice.device}
        if choice.step != "device" or here.keys() <= {"device"}:  # of "device" some may be kept otherwise
            here = {choice.step: [weight for own in here.values() for weight in own]}
        factors = beside[choice.device]
        for step, own in here.items():
            kept = held_by(own).get(choice.device, Held())
            why = choice.why if step == choice.step else _reason(choice.device, own, (choice.device, step) in before)
            if factors and not own:  # the plan copies no weight, whatever it would have done with one
                step, why = "beside", choice.why if choice.step == "beside" else _NOT_MERGED
            why = reasons.get((str(choice.device), step), why)
            found.append(Kept(str(choice.device), step, kept.device + factors, kept.host, why, kept.factors))
            factors = 0  # once
    return tuple(found)


def _reason(device: torch.device, weights: Sequence[Weight], before: bool) -> str:
    """Return why weights are written in place where W′ should have been bound beside W₀."""
    if before:
        return "it is held already"
    if all(weight.parameter.is_inference() for weight in weights):
        return "what was made under inference mode can only be written in place"
    return f"{device} ran out of memory"
