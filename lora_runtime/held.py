"""A model that is held for a while: what it is, what it shows, and how what is asked of it is applied."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from lora_runtime.beside import Live
from lora_runtime.copies import held_by
from lora_runtime.forecast import Step
from lora_runtime.memory import OutOfMemory
from lora_runtime.memory_policy import Decision, Held, Policy
from lora_runtime.owners import Decided, Owner, Teach, is_active, nothing, plan_of, snapshot
from lora_runtime.ownership import WAIT, Claim, claimed
from lora_runtime.pipelines import ModelView
from lora_runtime.plan import Plan
from lora_runtime.report import Kept
from lora_runtime.scopes import PATCHER, Scope, known_of, scope_of
from lora_runtime.shown import clear, show
from lora_runtime.targets import Targets

__all__ = ["ModelState", "owned"]

_AUTO = Policy()


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
            try:
                lives = bool(decision.plan.lives) and compiled()
                steps = decision.merging
                show(owner, self.scope, decision.plan, policy, steps, compiled=lives, began=began, teach=teach)
            except OutOfMemory:
                if policy.originals != "auto" or all(choice.step == "beside" for choice in decision.choices):
                    raise
            else:
                owner.decision = Decided.of(plan, decision, policy)
                memory = _kept(owner, decision) if known is None else known
                owner.report = replace(decision.plan.report, memory=memory)
                return replace(decision.plan, report=owner.report)
            without = frozenset({"device", "host"})  # only here is the memory of what was begun free again

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
