"""Where originals are kept: decided from what a plan takes, what is free, and what the caller allows.

    device    W′ beside W₀ on the device: restoring binds W₀ again
    host      W₀ in host memory, W′ in its place on the device: the device holds nothing more
    inplace   a copy of W₀ on the device, W′ in W₀'s place: addresses stay
    beside    no weight is copied: adapters act beside the modules; host where one would need a Δ of the weight's size

"auto" takes the first of device, host and beside for which there is room. Where the device's memory is the host's (the
CPU, MPS) host would save nothing: there it is device or beside, and the rest of beside is device.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Literal, NamedTuple, cast, get_args

import torch

from lora_runtime.beside import LiveModule
from lora_runtime.errors import MemoryBudgetError
from lora_runtime.footprint import rounded
from lora_runtime.forecast import LARGEST_SCRATCH, Forecast, Step, forecast, shares_host_memory, size_of
from lora_runtime.memory import free_bytes
from lora_runtime.plan import Assignment, Plan
from lora_runtime.report import in_words
from lora_runtime.step_beside import can_act_beside, step_beside
from lora_runtime.targets import Targets

__all__ = [
    "Choice",
    "Decision",
    "Held",
    "Merging",
    "Originals",
    "Policy",
    "Room",
    "decide",
    "decided_again",
    "read_bytes",
]

Originals = Literal["auto", "device", "host", "inplace", "beside"]

# A part of what copies leave free on a device may have factors, to save the next upload: the model computes there too.
_FACTOR_SHARE = 4
# Times W′: what the model computes with the weights needs memory of the device too, and the host has other programs.
_DEVICE_ROOM = 2.0
_HOST_ROOM = 1.25


@dataclass(frozen=True, slots=True)
class Room:
    """What there is: bytes that are free (None: it is not told), and bytes that the caller allows (None: all)."""

    free: int | None = None
    allowed: int | None = None

    def has(self, wanted: float) -> bool:
        """Return whether so many bytes are free."""
        return self.free is None or wanted <= self.free

    def allows(self, kept: int) -> bool:
        """Return whether so many bytes may be kept."""
        return self.allowed is None or kept <= self.allowed


@dataclass(frozen=True, slots=True)
class Held:
    """The bytes that are kept for the same weights already, on the device and in host memory: they count as free.

    `factors` lie on the device beside `device`: what was sent there to be summed.
    """

    device: int = 0
    host: int = 0
    factors: int = 0


_ENDLESS = Room()
_NONE = Held()
_NOTHING: Mapping[torch.device, Held] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Choice:
    """The step for the weights of one device, and the reason in words.

    `factor_room`: the bytes that factors may keep on the device, all in all, to be there for the next sum; None: any.
    """

    device: torch.device
    step: Step
    why: str
    factor_room: int | None = None


class Merging(NamedTuple):
    """How weights of a device are merged into: the step, and what factors may keep there as in a Choice."""

    step: Step
    factor_room: int | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """A plan as it is to be applied, and the step for each device that it has weights on.

    Where a step is "beside", the plan has acting beside what can, and the rest is merged as `merging` says.
    """

    plan: Plan
    choices: tuple[Choice, ...]
    on: torch.device | None = None  # where the weights would be; None: where they are

    @property
    def merging(self) -> dict[torch.device, Merging]:
        """How the weights that are merged into are kept, by device."""
        return {
            choice.device: Merging(_merged_step(choice.step, choice.device), choice.factor_room)
            for choice in self.choices
        }

    def forecasts(self) -> dict[torch.device, Forecast]:
        """Return what it takes on each device where nothing is held yet."""
        parts = _by_device(self.plan, self.on)
        return {
            choice.device: _forecast(
                choice.step, *parts.get(choice.device, ([], [])), choice.device, choice.factor_room
            )
            for choice in self.choices
        }


def decided_again(choices: tuple[Choice, ...], plan: Plan, targets: Targets | None) -> Decision | None:
    """Return the same decision for a plan that asks the same; None where its weights are elsewhere by now.

    Without targets, for a plan in which what can acts beside already.
    """
    known = {choice.device: choice.step for choice in choices}
    if not {assignment.parameter.device for assignment in plan.assignments} <= known.keys():
        return None
    if targets is not None and "beside" in known.values():
        here = (a for a in plan.assignments if known[a.parameter.device] == "beside")
        plan = step_beside(plan, targets, partial(_moves, frozenset(map(id, here))))
    return Decision(plan, choices)


@dataclass(frozen=True, slots=True)
class Policy:
    """What a caller asks: the step, or "auto", and how many bytes copies may take on each device and of the host."""

    originals: Originals = "auto"
    device_memory: int | None = None
    host_memory: int | None = None

    @classmethod
    def of(cls, originals: str, device_memory: int | str | None = None, host_memory: int | str | None = None) -> Policy:
        """Return what the arguments of an apply ask; ValueError says what can be asked."""
        if originals not in get_args(Originals):
            choices = ", ".join(f'"{choice}"' for choice in get_args(Originals))
            raise ValueError(f"originals={originals!r}: choose one of {choices}")
        device, host = read_bytes(device_memory, "device_memory"), read_bytes(host_memory, "host_memory")
        return cls(cast("Originals", originals), device, host)

    def decide(
        self,
        plan: Plan,
        targets: Targets | None = None,
        held: Mapping[torch.device, Held] = _NOTHING,
        without: frozenset[Step] = frozenset(),
    ) -> Decision:
        """Return how to apply a plan with the memory that is free now; `without` these steps, for want of memory.

        Without targets nothing can act beside.
        """
        limited = self.device_memory is not None or self.host_memory is not None
        if self.originals == "auto" and not limited and not without:
            parts = _by_device(plan, None)
            if all(_touched(own) <= held.get(device, _NONE).device for device, (own, _) in parts.items()):
                # It takes nothing more: of host memory nobody need be asked.
                rooms = {device: _held_room(device, held.get(device, _NONE)) for device in parts}
                return Decision(
                    plan, tuple(Choice(device, "device", "it is held already", most) for device, most in rooms.items())
                )

        def room_on(device: torch.device) -> Room:
            return Room(free_bytes(device), self.device_memory)

        host = Room(free_bytes(torch.device("cpu")), self.host_memory)
        return decide(plan, targets, self.originals, room_on, host, held, without=without)


def decide(
    plan: Plan,
    targets: Targets | None,
    originals: Originals,
    room_on: Callable[[torch.device], Room],
    host: Room = _ENDLESS,
    held: Mapping[torch.device, Held] = _NOTHING,
    on: torch.device | None = None,
    without: frozenset[Step] = frozenset(),
) -> Decision:
    """Return how to apply a plan: at the step that is asked for, or of "auto" at the first for which there is room.

    `room_on` is asked of each device that the plan has weights on; `held` is kept there for the same weights; `on`:
    all weights as if they were there; `without` these steps. MemoryBudgetError where what is allowed is not enough for
    any of them. Without targets nothing can act beside.
    """
    choices = []
    for device, (assignments, _) in _by_device(plan, on).items():
        shared = shares_host_memory(device)
        own = held.get(device, _NONE)
        room = host if shared else _with_factors(room_on(device), own)
        place = _Place(device, room, host, own, originals == "auto")
        here = frozenset(map(id, assignments))
        misses: list[str] = [f"{device} ran out of memory"] if without else []
        for step in _steps(originals, device, without):
            trial = plan
            if step == "beside" and targets is not None:
                trial = step_beside(plan, targets, partial(_moves, here))
            miss = _miss(step, *_by_device(trial, on).get(device, ([], [])), place)
            if miss is None:
                plan = trial
                most = _factor_room(step, *_by_device(trial, on).get(device, ([], [])), place)
                choices.append(Choice(device, step, _why(misses, originals), most))
                break
            misses.append(miss)
        else:
            way_out = "" if originals == "auto" else ', or use originals="auto"'
            raise MemoryBudgetError(f"{'; '.join(misses)}: allow more, or use fewer LoRAs at once{way_out}")
    return Decision(plan, tuple(choices), on)


def _steps(originals: Originals, device: torch.device, without: frozenset[Step]) -> tuple[Step, ...]:
    if originals != "auto":
        return (originals,)
    steps: tuple[Step, ...] = ("device", "beside") if shares_host_memory(device) else ("device", "host", "beside")
    return tuple(step for step in steps if step not in without)


def _moves(here: frozenset[int], assignment: Assignment) -> bool:
    return id(assignment) in here and can_act_beside(assignment)


def _why(misses: Sequence[str], originals: Originals) -> str:
    if misses:
        return "; ".join(dict.fromkeys(misses))
    return "there is room" if originals == "auto" else "as asked for"


@dataclass(frozen=True, slots=True)
class _Place:
    """A device that has to have room."""

    device: torch.device
    room: Room
    host: Room
    held: Held
    asks: bool  # whether what is free counts; else only what is allowed


def _miss(step: Step, assignments: Sequence[Assignment], lives: Sequence[LiveModule], place: _Place) -> str | None:
    """Return in words what there is too little of for a step, or None where there is enough."""
    device, room, host, held = place.device, place.room, place.host, place.held
    asks = place.asks and step != "beside"  # there is no other step after it
    limited = room.allowed is not None or host.allowed is not None
    if not limited and not (asks and _is_tight(step, assignments, place)):
        return None
    taken = _forecast(step, assignments, lives, device)
    where = "in host memory" if shares_host_memory(device) else f"on {device}"
    if not room.allows(taken.kept):
        return f"{in_words(taken.kept)} for {_COPIES[step]}, {in_words(room.allowed or 0)} allowed {where}"
    if not host.allows(taken.host_kept):
        return f"{in_words(taken.host_kept)} for {_COPIES[step]}, {in_words(host.allowed or 0)} allowed in host memory"
    if not asks:
        return None
    factor = _HOST_ROOM if shares_host_memory(device) else _DEVICE_ROOM
    new = max(0, taken.kept - held.device)
    if not room.has((factor - 1) * new + max(0, taken.peak - held.device)):
        return f"{in_words(taken.touched)} touched, {in_words(room.free or 0)} free {where}"
    if not host.has(_HOST_ROOM * max(0, taken.host_kept - held.host)):
        return f"{in_words(taken.touched)} touched, {in_words(host.free or 0)} free in host memory"
    return None


def _with_factors(room: Room, held: Held) -> Room:
    """Return what there is once factors that are held have been given up: they go first."""
    return room if room.free is None else replace(room, free=room.free + held.factors)


def _held_room(device: torch.device, held: Held) -> int | None:
    """Return how many bytes factors may keep on a device where nothing more is copied."""
    if shares_host_memory(device):
        return 0
    room = _with_factors(Room(free_bytes(device)), held)
    return _factor_room("device", [], [], _Place(device, room, _ENDLESS, held, asks=True))


def _factor_room(
    step: Step, assignments: Sequence[Assignment], lives: Sequence[LiveModule], place: _Place
) -> int | None:
    """Return how many bytes factors of these weights may keep on the device once it is applied; None: any."""
    if shares_host_memory(place.device):
        return 0  # they are there already
    most = []
    if place.room.free is not None:
        in_host = _merged_step(step, place.device) == "host"
        copies = 0 if in_host else sum(rounded(size_of(assignment.parameter)) for assignment in assignments)
        most.append((place.room.free - max(0, copies - place.held.device)) // _FACTOR_SHARE)
    if place.room.allowed is not None:
        most.append(place.room.allowed - _forecast(step, assignments, lives, place.device).kept)
    return max(0, min(most)) if most else None


def _is_tight(step: Step, assignments: Sequence[Assignment], place: _Place) -> bool:
    """Return whether there may be too little; False at a glance where memory is plenty, or nothing more is taken."""
    new = max(0, _touched(assignments) - (place.held.host if step == "host" else place.held.device))
    if new == 0 and step == "device":
        return False
    largest = max((assignment.parameter.numel() for assignment in assignments), default=0)
    scratch = LARGEST_SCRATCH * largest
    if step == "host":
        return not (place.room.has(scratch) and place.host.has(_HOST_ROOM * new))
    return not place.room.has(_DEVICE_ROOM * new + scratch)


def _touched(assignments: Sequence[Assignment]) -> int:
    return sum(size_of(assignment.parameter) for assignment in assignments)


_COPIES = {
    "device": "W′ beside the originals",
    "host": "copies of the originals",
    "inplace": "copies of the originals",
    "beside": "factors beside the modules",
}


def _merged_step(step: Step, device: torch.device) -> Step:
    """Return how weights are kept that are merged into where a step is taken."""
    if step == "beside":
        return "device" if shares_host_memory(device) else "host"
    return step


def _forecast(
    step: Step,
    assignments: Sequence[Assignment],
    lives: Sequence[LiveModule],
    device: torch.device,
    factor_room: int | None = 0,
) -> Forecast:
    return replace(forecast(_merged_step(step, device), assignments, lives, device, factor_room), step=step)


def _by_device(plan: Plan, on: torch.device | None) -> dict[torch.device, tuple[list[Assignment], list[LiveModule]]]:
    """Return the weights and modules of a plan by the device that they are on."""
    found: dict[torch.device, tuple[list[Assignment], list[LiveModule]]] = {}
    for assignment in plan.assignments:
        found.setdefault(on or assignment.parameter.device, ([], []))[0].append(assignment)
    for live in plan.lives:
        own = next((parameter for parameter in live.module._parameters.values() if parameter is not None), None)
        device = on or (torch.device("cpu") if own is None else own.device)
        found.setdefault(device, ([], []))[1].append(live)
    return found


# ---- sizes ----------------------------------------------------------------------------------------------------------

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS |= {"KI": 1 << 10, "MI": 1 << 20, "GI": 1 << 30, "TI": 1 << 40}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]I?|)B?\s*")


def read_bytes(value: int | str | None, what: str) -> int | None:
    """Return a size in bytes: of a number of bytes, or of text such as "24GB" (10⁹) or "24GiB" (2³⁰).

    ValueError for anything else, with `what` for its name.
    """
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        return value
    found = _SIZE.fullmatch(value.upper()) if isinstance(value, str) else None
    if found is None:
        raise ValueError(f'{what}={value!r}: give a number of bytes, or text such as "24GB" or "24GiB"')
    return int(float(found[1]) * _UNITS[found[2]])
