"""A plan that copies no weight: what is constant acts beside the modules too, where it can at little cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

from torch import nn

from lora_runtime.beside import LiveModule, LiveTerm, dense_bytes, reason_against
from lora_runtime.plan import Assignment, Plan, count_by_images
from lora_runtime.report import Report
from lora_runtime.stage import Varying
from lora_runtime.targets import Targets

__all__ = ["NO_ROOM", "can_act_beside", "step_beside"]

NO_ROOM = "that there is no room to copy"  # as a reason in a LoraReport


def can_act_beside(assignment: Assignment) -> bool:
    """Return whether all of an assignment can act beside its module, without a Δ of the weight's size."""
    module, name = assignment.target.module, _name_of(assignment)
    if name is None or assignment.precise is not None or reason_against(module, name) is not None:
        return False
    return name == "bias" or all(dense_bytes(module, name, t.adapter, t.part) == 0 for t in assignment.terms)


def step_beside(plan: Plan, targets: Targets, moves: Callable[[Assignment], bool] = can_act_beside) -> Plan:
    """Return the plan with those assignments acting beside their modules that `moves` is true for.

    The sums are the same, and their rounding is not: activations are rounded, and no weight is.
    """
    moved = [assignment for assignment in plan.assignments if moves(assignment)]
    if not moved:
        return plan
    taken = set(map(id, moved))
    stay = tuple(assignment for assignment in plan.assignments if id(assignment) not in taken)
    lives = {id(live.module): live for live in plan.lives}
    for assignment in moved:
        name = _name_of(assignment)
        assert name is not None
        for module in (assignment.target.module, *targets.same_tables(assignment.target, name)):
            known = lives.get(id(module)) or LiveModule(assignment.target.component, module, {}, ())
            lives[id(module)] = _joined(known, name, assignment)
    merged = {id(assignment.parameter) for assignment in stay}
    settled = tuple(replace(live, unmerged=_unmerged(live, merged)) for live in lives.values())
    return Plan(stay, _counted(plan.report, moved, stay, settled), settled, plan.key)


def _name_of(assignment: Assignment) -> str | None:
    """Return the name of an assignment's parameter in its module."""
    parameters: Mapping[str, nn.Parameter | None] = assignment.target.module._parameters
    return next((name for name, own in parameters.items() if own is assignment.parameter), None)


def _joined(live: LiveModule, name: str, assignment: Assignment) -> LiveModule:
    """Return a module with an assignment's terms among those that act beside it."""
    terms = tuple(LiveTerm(t.adapter, Varying(t.strength), t.dyn, t.part, t.pieces) for t in assignment.terms)
    return replace(
        live,
        terms=MappingProxyType({**live.terms, name: (*live.terms.get(name, ()), *terms)}),
        identity=(*live.identity, *((name, identity) for identity in assignment.identity)),
    )


def _unmerged(live: LiveModule, merged: set[int]) -> frozenset[str]:
    parameters = live.module._parameters
    return frozenset(name for name in live.terms if id(parameters.get(name)) not in merged)


def _counted(
    report: Report, moved: list[Assignment], stay: tuple[Assignment, ...], lives: tuple[LiveModule, ...]
) -> Report:
    """Return the report with the weights of each file counted where they are now."""
    counts = Counter(identity[0] for assignment in moved for identity in assignment.identity)  # type: ignore[index]
    loras = []
    for lora in report.loras:
        count = min(lora.merged, counts[lora.sha256])
        counts[lora.sha256] -= count
        beside = {**lora.beside, NO_ROOM: count} if count else lora.beside
        loras.append(replace(lora, merged=lora.merged - count, live=lora.live + count, beside=beside))
    size = sum(a.parameter.numel() * a.parameter.element_size() for a in stay)
    count, by_images = len(lives), count_by_images(lives)
    return replace(report, loras=tuple(loras), weights=len(stay), bytes=size, live=count, live_of=by_images)
