"""Apply and restore: which parameter shows which W′, and how each gets its W₀ back.

What may happen to a parameter between apply and restore is in settling.py. Restore then

    binds the original                       where nothing happened
    puts the original where it is by now     after `.to`, offloading
    casts the original the same way          after `.half`, …
    does nothing                             where others wrote or bound new values, or put another Parameter there

Memory that somebody else refers to (a `state_dict()` taken while patched) is never filled with the next W′: the
storage's count of uses tells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import wraps
from typing import NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor

from lora_runtime.copies import Copies, held_by
from lora_runtime.errors import ModelError
from lora_runtime.factors import Factors, give_up, without_room
from lora_runtime.forecast import Step, shares_host_memory
from lora_runtime.memory import OutOfMemory
from lora_runtime.memory_policy import Merging, Originals, Policy
from lora_runtime.merge import Workspace, merge_into, too_large
from lora_runtime.plan import Assignment, Plan
from lora_runtime.precision import full_precision
from lora_runtime.report import Report
from lora_runtime.settling import same_layout, settle, warn_of
from lora_runtime.uploads import Uploads
from lora_runtime.weight_table import WeightTable
from lora_runtime.weights import Weight, is_shared, plain_data, tell_autograd

__all__ = ["Patcher"]

P = ParamSpec("P")
R = TypeVar("R")


def _plain_mode(function: Callable[P, R]) -> Callable[P, R]:
    """Run `function` outside of inference mode and autograd.

    A tensor made under inference mode stays an inference tensor for life, and a weight must not become one.
    """

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch.inference_mode(False), torch.no_grad():
            return function(*args, **kwargs)

    return run


class _Tools(NamedTuple):
    """What the sums of one apply share."""

    workspace: Workspace
    copies: Copies
    uploads: Uploads


class Patcher(WeightTable):
    """Patches parameters and restores them. Not thread-safe by itself: ownership.py says who may."""

    def __init__(self) -> None:
        """Start with nothing."""
        super().__init__()
        self._factors = Factors()

    @_plain_mode
    def apply(
        self,
        assignments: Sequence[Assignment],
        policy: Policy | Originals = "auto",
        among: Sequence[Weight] | None = None,
        weights: Sequence[Weight] | None = None,
        steps: Mapping[torch.device, Merging] | None = None,
        *,
        again: bool = False,
    ) -> int:
        """Make these the patches of the weights `among` (all), replacing earlier ones; return how many were computed.

        `weights`: those of the assignments, where the caller has them at hand; `steps`: how originals are kept on each
        device, where the caller has decided it by the policy. `again`: they were kept so before, and are to be again,
        however somebody else has had them kept meanwhile.

        If anything fails on the way, every one of them gets its original back before the error goes on. Where a device
        runs out of memory, the factors that stay there are given up first; "auto" then goes on with what takes less.
        """
        policy = Policy(policy) if isinstance(policy, str) else policy
        among = self.all_weights() if among is None else among
        own = list(weights) if weights is not None else [*map(self.weight_of, assignments)]
        asked = list(zip(assignments, own, strict=True))
        auto = policy.originals == "auto"
        devices = {weight.parameter.device for weight in own}
        if steps is None or not devices <= steps.keys():
            steps = _decided(assignments, own, policy)
        less = auto and any(steps[device].step == "device" and not shares_host_memory(device) for device in devices)
        # What was computed so far lies in an error's frames: only after `except`, without it, is its memory free.
        try:
            return self._apply(asked, steps, among, auto=auto and not again)
        except OutOfMemory:
            given_up = self.give_up_factors()
            if not given_up and not less:
                raise
        if given_up:
            try:
                return self._apply(asked, without_room(steps), among, auto=auto and not again)
            except OutOfMemory:
                if not less:
                    raise
        steps = _decided(assignments, own, policy, without=frozenset({"device"}))
        return self._apply(asked, without_room(steps), among, auto=auto)

    def give_up_factors(self) -> bool:
        """Let no factors stay on any device, of whatever model; return whether there were any.

        They are there to save an upload, so whoever runs out of memory may take theirs first.
        """
        return give_up(self.all_weights())

    def _apply(
        self,
        asked: Sequence[tuple[Assignment, Weight]],
        steps: Mapping[torch.device, Merging],
        among: Sequence[Weight],
        *,
        auto: bool,
    ) -> int:
        written: list[Weight] = []
        try:
            if any(weight.original is not None for weight in among):
                wanted = {id(weight) for _, weight in asked}
                for weight in among:
                    if weight.original is not None and id(weight) not in wanted:
                        self._restore(weight, written)
            todo = [(a, w, _step_of(w, steps)) for a, w in asked]
            stale = {id(w.parameter) for a, w, step in todo if not self._is_current(a, w, step, written, auto=auto)}
            changed = [found for found in todo if not stale.isdisjoint(_reads(found[0]))] if stale else []
            if changed:
                changed.sort(key=lambda found: -found[1].parameter.numel())  # no scratch memory is outgrown then
                uploads = self._factors.prepare([(a, w) for a, w, _ in changed], steps, among)
                tools = _Tools(Workspace(), Copies((w, step) for _, w, step in changed if w.original is None), uploads)
                with full_precision():
                    bindings = [(a, w, self._filled(a, w, step, tools)) for a, w, step in changed]
                tools.copies.wait()
                uploads.wait()
                for assignment, weight, value in bindings:
                    weight.bind(value, assignment)
        except BaseException:
            self.restore(among=[*among, *(weight for _, weight in asked)])
            raise
        finally:
            warn_of(written)
        return len(changed)

    @_plain_mode
    def restore(self, *, release: bool = False, among: Iterable[Weight] | None = None) -> int:
        """Give these parameters (all) their originals back; return how many were patched.

        `release` frees the buffers too. One that fails, for want of memory even after factors have made room, keeps no
        other from its original; the error goes on then.
        """
        written: list[Weight] = []
        count, failure = 0, None
        for weight in self.all_weights() if among is None else among:
            if weight.original is not None:
                try:
                    self._restore_with_room(weight, written)
                    count += 1
                except Exception as error:
                    failure = failure or error
            if release:
                weight.buffer = None
                weight.drop_uploads()
        warn_of(written)
        if failure is not None:
            raise failure
        return count

    def _is_current(
        self, assignment: Assignment, weight: Weight, step: Step, written: list[Weight], *, auto: bool
    ) -> bool:
        """Return whether the parameter shows just this already; where it does not, settle what happened to it.

        How its original is kept does not matter to "auto": memory that comes and goes must not cost a sum.
        """
        if weight.original is None or not settle(self, weight, written):
            return False
        shown, cast = weight.shown, weight.parameter.dtype != weight.original.dtype
        same = shown is not None and not cast and shown.identity == assignment.identity
        if same and (auto or weight.step == step):
            return True
        if weight.step != step or cast or shown is None:
            self._restore(weight, written)
        return False

    def _filled(self, assignment: Assignment, weight: Weight, step: Step, tools: _Tools) -> Tensor:
        """Return what `_fill` does; StrengthError names the file that makes a weight too large."""
        try:
            return self._fill(assignment, weight, step, tools)
        except ModelError as error:  # another weight that a file depends on cannot be read
            most = next((index for index, term in enumerate(assignment.terms) if term.pieces), 0)
            raise ModelError(str(error), error.sha256 or str(assignment.identity[most][0])) from error  # type: ignore[index]
        except OverflowError as error:
            tools.copies.wait()
            original = self.original(assignment.parameter)
            files = [str(identity[0]) for identity in assignment.identity]  # type: ignore[index]
            raise too_large(assignment.target, original, self.terms(assignment), files, error) from error

    def _fill(self, assignment: Assignment, weight: Weight, step: Step, tools: _Tools) -> Tensor:
        """Compute W′ of one parameter into memory of its own (in place: into its own storage) and return that."""
        precise, workspace, copies = assignment.precise, tools.workspace, tools.copies
        if any(term.pieces for term in assignment.terms):
            copies.wait()  # they are read in host memory
        terms = self.terms(assignment, self._factors.there(assignment, weight, tools.uploads))
        if step == "device":
            original = plain_data(weight.parameter) if weight.original is None else weight.original
            value = self._memory(weight, original)
            merge_into(value, original if precise is None else precise, terms, workspace)
            return value
        here, first = plain_data(weight.parameter), weight.original is None
        copy = copies.make(weight, step) if weight.original is None else weight.original
        if first:
            weight.begin(copy, step)
        weight.shown = None  # neither W₀ nor W′ until the sum is done
        if precise is None and not first and copy.device != here.device:
            # One upload, and the sum from what the device has then: from the host each block would be one, in float32.
            here.copy_(copy, non_blocking=True)
            first = True
        if first and precise is None:
            with suppress(OverflowError):  # which only a sum from W₀ itself can tell from a W₀ that is not finite
                merge_into(here, here, terms, workspace)
                return copy
            copies.wait()
        merge_into(here, copy if precise is None else precise, terms, workspace)
        return copy

    def _memory(self, weight: Weight, original: Tensor) -> Tensor:
        """Return memory for W′: what held the last one, unless somebody else refers to it."""
        device = weight.parameter.device
        known = 1
        buffer = weight.buffer
        if weight.original is not None:
            buffer, known = weight.parameter.data, 2  # and the parameter itself
        fits = buffer is not None and same_layout(buffer, torch.empty_like(original, device="meta"), device)
        if buffer is not None and fits and not is_shared(buffer, known):
            weight.shown = None  # where it is bound now, what it shows changes under it
            return buffer
        return torch.empty_like(original, device=device)

    def _restore_with_room(self, weight: Weight, written: list[Weight]) -> None:
        """Do `_restore`, once more without factors on devices where there is no memory for it."""
        shown = weight.shown
        try:
            self._restore(weight, written)
        except OutOfMemory:
            weight.shown = shown  # still: it had no room for anything else
            if not self.give_up_factors():
                raise
            self._restore(weight, written)

    def _restore(self, weight: Weight, written: list[Weight]) -> None:
        """Give one parameter its original back, in the form that it has by now (see the table above)."""
        if not settle(self, weight, written):
            return
        parameter, original = weight.parameter, weight.original
        assert original is not None
        weight.buffer = weight.shown = None  # shown: an interrupt must not take W₀ for values that somebody wrote
        if weight.can_bind():
            # A device's allocator has the memory again at once; fresh memory of the host costs page faults.
            value = parameter.data
            parameter.data = original
            weight.buffer = value if original.is_cpu and value.data_ptr() != original.data_ptr() else None
        elif parameter.is_meta:
            pass  # it has no values
        elif weight.in_place:
            plain_data(parameter).copy_(original, non_blocking=True)
            weight.buffer = original if original.device.type == "cpu" else None
        elif is_shared(parameter, 1):
            parameter.data = torch.empty_like(parameter.data).copy_(original)
        else:  # a device that just fits the model has no room for another copy
            parameter.data.copy_(original)
        tell_autograd(parameter)
        weight.end()  # last: an interrupt before it leaves a patch that can be restored again


def _decided(
    assignments: Sequence[Assignment],
    weights: Sequence[Weight],
    policy: Policy,
    without: frozenset[Step] = frozenset(),
) -> dict[torch.device, Merging]:
    """Return the step for each device, of those that need no module to act beside."""
    return policy.decide(Plan(tuple(assignments), Report()), None, held_by(weights), without).merging


def _step_of(weight: Weight, steps: Mapping[torch.device, Merging]) -> Step:
    """Return the step for one weight: what was made under inference mode can only be written in place."""
    step = steps[weight.parameter.device].step
    return "host" if step == "device" and weight.parameter.is_inference() else step


def _reads(assignment: Assignment) -> set[int]:
    """Return the ids of the parameters whose originals a W′ is made of: its own, and others where a file has them."""
    return {id(assignment.parameter), *(id(piece.parameter) for term in assignment.terms for piece in term.pieces)}
