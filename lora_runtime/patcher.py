"""The state of a patched model: which parameter is bound to which W′, and how each gets its W₀ back.

The original weights are never written (except in place, see below). Patching binds a new tensor to the Parameter with
`parameter.data = W′`; the old tensor *is* the backup, and restoring binds it again: no copy, about 1 µs a weight, exact
by construction. Buffers of W′ are kept and refilled at the next switch, because a first allocation costs up to ten
times the work itself in page faults.

In place (`originals="host"`), for devices without room for both: the original is copied to host memory, its storage is
written, and restoring copies back. Addresses stay.

What may happen to a parameter between apply and restore, and what restore then does:

    nothing                                 binds the original
    moved or cast (`.to`, `.half`, …)       binds the original, moved or cast the same way
    written in place (`load_state_dict`)    the new values stay; they are moved into the original's storage
    replaced by another Parameter           nothing: it is not ours (`load_state_dict(assign=True)`, trashed to meta)

A write in place is seen by the version counter that autograd keeps; binding `.data` does not count.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from typing import Literal, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from lora_runtime.adapters import Adapter
from lora_runtime.merge import Piece, Term, Workspace, merge_into, rows_of
from lora_runtime.plan import Assignment

__all__ = ["Originals", "Patcher"]

Originals = Literal["auto", "device", "host"]

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


@dataclass(slots=True)
class _Patch:
    """One patched parameter. `original` is W₀ itself, or in place its copy in host memory."""

    parameter: weakref.ref[nn.Parameter]
    original: Tensor
    in_place: bool
    identity: tuple[object, ...]
    stamp: int | tuple[torch.dtype, int]
    pointer: int = 0  # to W′

    def is_as_we_left_it(self, parameter: nn.Parameter, buffer: Tensor | None) -> bool:
        """Return whether the parameter still shows the W′ that we bound or wrote."""
        if _written(parameter, self.stamp):
            return False
        if self.in_place:
            return parameter.dtype == self.original.dtype
        return buffer is not None and parameter.data_ptr() == buffer.data_ptr() and parameter.dtype == buffer.dtype


class Patcher:
    """Patches the parameters of one model and restores them. Not thread-safe by itself: runtime.py holds the lock."""

    def __init__(self) -> None:
        """Start with nothing patched and no memory held."""
        self._patches: dict[int, _Patch] = {}  # by id(parameter)
        self._buffers: dict[int, tuple[weakref.ref[nn.Parameter], Tensor]] = {}  # W′, or in place W₀ on the host

    @property
    def patched(self) -> int:
        """The number of parameters that are patched now."""
        return len(self._patches)

    @property
    def nbytes(self) -> int:
        """The bytes held in buffers, in use or kept for the next switch."""
        return sum(buffer.numel() * buffer.element_size() for _, buffer in self._buffers.values())

    @_plain_mode
    def apply(self, assignments: Sequence[Assignment], originals: Originals = "auto") -> int:
        """Make these the model's patches, replacing all earlier ones; return how many weights were computed.

        If anything fails on the way, every parameter gets its original back before the error goes on.
        """
        in_place = _choose_in_place(assignments, originals, self._held(assignments))
        try:
            wanted = {id(a.parameter) for a in assignments}
            for key in [key for key in self._patches if key not in wanted]:
                self._restore(key)
            modes = [(a, in_place[a.parameter.device] or a.parameter.is_inference()) for a in assignments]
            stale = {id(a.parameter) for a, mode in modes if not self._is_current(a, mode)}
            changed = [(a, mode) for a, mode in modes if not stale.isdisjoint(_reads(a))]
            workspace = Workspace()
            bindings = [(a, self._fill(a, mode, workspace)) for a, mode in changed]
            for assignment, buffer in bindings:
                self._bind(assignment, buffer)
        except BaseException:
            self.restore()
            raise
        return len(changed)

    def intact(self) -> bool:
        """Return whether every parameter still shows what the last `apply` bound; a look of 0.3 µs at each."""
        for patch in self._patches.values():
            parameter = patch.parameter()
            if parameter is None or parameter.data_ptr() != patch.pointer or _written(parameter, patch.stamp):
                return False
        return True

    def original(self, parameter: nn.Parameter) -> Tensor:
        """Return W₀ of a parameter, patched or not; in place it is the copy in host memory."""
        patch = self._patches.get(id(parameter))
        if patch is None or patch.parameter() is not parameter:
            return _plain_data(parameter)
        return patch.original

    @_plain_mode
    def restore(self, *, release: bool = False) -> int:
        """Give every parameter its original back; return how many were patched. `release` frees the buffers too."""
        count = len(self._patches)
        for key in list(self._patches):
            self._restore(key)
        if release:
            self._buffers.clear()
        return count

    def _is_current(self, assignment: Assignment, in_place: bool) -> bool:
        """Return whether the parameter shows just this already; where it does not, settle what happened to it."""
        key = id(assignment.parameter)
        patch = self._patches.get(key)
        if patch is None:
            return False
        if patch.parameter() is not assignment.parameter:  # the id belongs to another parameter by now
            del self._patches[key]
            return False
        intact = patch.in_place == in_place and patch.is_as_we_left_it(assignment.parameter, self._buffer(key))
        if intact and patch.identity == assignment.identity:
            return True
        if not intact:
            self._restore(key)
        return False

    def _fill(self, assignment: Assignment, in_place: bool, workspace: Workspace) -> Tensor:
        """Compute W′ of one parameter into its buffer (in place: into its own storage) and return the buffer."""
        parameter = assignment.parameter
        key = id(parameter)
        patch = self._patches.get(key)
        if in_place:
            if patch is None:
                patch = self._begin(parameter, _copy_to_host(parameter, self._buffer(key)), in_place=True)
            weight = patch.original if assignment.precise is None else assignment.precise
            merge_into(_plain_data(parameter), weight, self._terms(assignment), workspace)
            return patch.original
        original = _plain_data(parameter) if patch is None else patch.original
        buffer = self._buffer(key)
        if buffer is None or not _same_layout(buffer, torch.empty_like(original, device="meta"), original.device):
            buffer = torch.empty_like(original)
        weight = original if assignment.precise is None else assignment.precise
        merge_into(buffer, weight, self._terms(assignment), workspace)
        return buffer

    def grounded(self, adapter: Adapter, pieces: Sequence[Piece]) -> Adapter:
        """Return an adapter that has the originals of these pieces, where it depends on them."""
        return adapter.given(tuple(map(self._original_of, pieces))) if pieces else adapter

    def _original_of(self, piece: Piece) -> Tensor:
        """Return what a parameter has of a weight, before any patch."""
        if piece.base is not None:
            return rows_of(piece.base(), piece.part)
        assert piece.parameter is not None
        weight = self.original(piece.parameter) if piece.precise is None else piece.precise
        return rows_of(weight, piece.part)

    def _terms(self, assignment: Assignment) -> list[Term]:
        """Return the terms of a parameter; those that depend on the originals of others too are given them."""
        return [
            replace(term, adapter=self.grounded(term.adapter, term.pieces)) if term.pieces else term
            for term in assignment.terms
        ]

    def _begin(self, parameter: nn.Parameter, original: Tensor, *, in_place: bool) -> _Patch:
        """Record a parameter as patched, with what will bring it back."""
        patch = _Patch(weakref.ref(parameter), original, in_place, (), _stamp(parameter))
        self._patches[id(parameter)] = patch
        return patch

    def _bind(self, assignment: Assignment, buffer: Tensor) -> None:
        """Show W′ in the parameter and remember what it is."""
        parameter = assignment.parameter
        key = id(parameter)
        patch = self._patches.get(key)
        if patch is None:
            patch = self._begin(parameter, _plain_data(parameter), in_place=False)
        if not patch.in_place:
            parameter.data = buffer
        self._buffers[key] = weakref.ref(parameter), buffer
        patch.identity = assignment.identity
        patch.stamp = _stamp(parameter)
        patch.pointer = parameter.data_ptr()

    def _restore(self, key: int) -> None:
        """Give one parameter its original back, in the form that it has by now (see the table above)."""
        patch = self._patches[key]
        parameter = patch.parameter()
        if parameter is None:  # its module is gone
            self._buffers.pop(key, None)
        elif _written(parameter, patch.stamp):  # written in place: the new values stay
            if not patch.in_place and _same_layout(parameter.data, patch.original):
                parameter.data = patch.original.copy_(parameter.data)
        elif patch.in_place:
            _plain_data(parameter).copy_(patch.original)
        else:
            parameter.data = _in_the_form_of(parameter.data, patch.original)
        del self._patches[key]  # last: an interrupt before it leaves a patch that can be restored again

    def _buffer(self, key: int) -> Tensor | None:
        """Return the buffer kept for a parameter, or None."""
        kept = self._buffers.get(key)
        if kept is None:
            return None
        if kept[0]() is None:  # the id belongs to another parameter by now
            del self._buffers[key]
            return None
        return kept[1]

    def _held(self, assignments: Sequence[Assignment]) -> dict[torch.device, int]:
        """Return the bytes of W′ buffers that are there already, by device."""
        held: dict[torch.device, int] = {}
        for assignment in assignments:
            buffer = self._buffer(id(assignment.parameter))
            if buffer is not None:
                held[buffer.device] = held.get(buffer.device, 0) + buffer.numel() * buffer.element_size()
        return held


def _reads(assignment: Assignment) -> set[int]:
    """Return the ids of the parameters whose originals a W′ is made of: its own, and others where a file has them."""
    return {id(assignment.parameter), *(id(piece.parameter) for term in assignment.terms for piece in term.pieces)}


def _stamp(parameter: nn.Parameter) -> int | tuple[torch.dtype, int]:
    """Return what changes when somebody writes into the parameter: autograd's counter of writes.

    A parameter made under inference mode has none; the sum of its bytes as integers stands in.
    """
    try:
        return parameter._version
    except RuntimeError:
        return parameter.dtype, int(_plain_data(parameter).reshape(-1).view(torch.uint8).sum(dtype=torch.int64))


def _written(parameter: nn.Parameter, stamp: int | tuple[torch.dtype, int]) -> bool:
    """Return whether somebody has written into the parameter since `stamp`; a cast is no write."""
    if isinstance(stamp, int):
        return parameter._version != stamp
    return stamp[0] == parameter.dtype and _stamp(parameter) != stamp


def _plain_data(parameter: nn.Parameter) -> Tensor:
    """Return the parameter's values as a plain tensor over the same storage.

    A parameter made under inference mode holds an inference tensor, which cannot be written outside of it; nor can
    another tensor be bound to it (its forward then fails for want of a version counter), so it is patched in place.
    """
    data = parameter.data
    if not data.is_inference():
        return data
    plain = torch.empty(0, dtype=data.dtype, device=data.device)
    return plain.set_(data.untyped_storage(), data.storage_offset(), data.shape, data.stride())


def _same_layout(a: Tensor, b: Tensor, device: torch.device | None = None) -> bool:
    """Return whether `a` lies in memory as `b` does, on the device of `b` or on another one given."""
    same_device = a.device == (device or b.device)
    return same_device and a.dtype == b.dtype and a.shape == b.shape and a.stride() == b.stride()


def _in_the_form_of(current: Tensor, original: Tensor) -> Tensor:
    """Return `original` on the device and in the dtype and layout of `current`: itself where nothing changed."""
    moved = original.to(device=current.device, dtype=current.dtype)
    if moved.shape == current.shape and moved.stride() != current.stride():
        moved = torch.empty_like(current).copy_(moved)
    return moved


def _copy_to_host(parameter: nn.Parameter, buffer: Tensor | None) -> Tensor:
    """Return a copy of the parameter's values in host memory, in `buffer` if it fits."""
    value = parameter.data
    if buffer is None or buffer.device.type != "cpu" or buffer.dtype != value.dtype or buffer.shape != value.shape:
        buffer = torch.empty_like(value, device="cpu")
    return buffer.copy_(value)


def _choose_in_place(
    assignments: Sequence[Assignment], originals: Originals, held: dict[torch.device, int]
) -> dict[torch.device, bool]:
    """Return for each device whether its weights are written in place (True) or bound anew (False)."""
    touched: dict[torch.device, int] = {}
    for assignment in assignments:
        parameter = assignment.parameter
        size = parameter.numel() * parameter.element_size()
        touched[parameter.device] = touched.get(parameter.device, 0) + size
    if originals != "auto":
        return dict.fromkeys(touched, originals == "host")
    return {device: not _has_room(device, 2 * (size - held.get(device, 0))) for device, size in touched.items()}


def _has_room(device: torch.device, size: int) -> bool:
    """Return whether `size` bytes are free on the device; memory shared with the host (CPU, MPS) counts as room."""
    if device.type != "cuda" or size <= 0:
        return True
    free, _ = torch.cuda.mem_get_info(device)
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return size <= free + cached
