"""What an apply takes in memory and copies, told from shapes alone: nothing is computed, nothing is read.

What a merge takes beside W₀ and W′ is found by summing tensors of the same shapes on torch's meta device. The weights
of the plan may be outlines without memory of their own (`torch.empty(()).expand(shape)`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lora_runtime.adapters import Adapter
from lora_runtime.adapters.base import sum_dtype
from lora_runtime.beside import LiveModule, LiveTerm, prepare
from lora_runtime.footprint import Footprint, rounded
from lora_runtime.merge import Piece, Term, Workspace, rows_of, sum_into
from lora_runtime.plan import Assignment
from lora_runtime.routes import layer_shape
from lora_runtime.uploads import packed_bytes

__all__ = ["LARGEST_SCRATCH", "Forecast", "Step", "forecast", "shares_host_memory", "size_of"]

Step = Literal["device", "host", "inplace", "beside"]

_UNKNOWN = 7  # times the weight in float32: what a merge takes at most where the meta device cannot tell; measured
LARGEST_SCRATCH = 4 * (_UNKNOWN + 3)  # bytes for each element of a weight: more than any merge takes beside W₀ and W′


@dataclass(frozen=True, slots=True)
class Forecast:
    """What an apply takes in bytes beside the model's own weights, and what crosses between host and device.

    `kept` and `host_kept` stay until the restore; `peak` is the most that the device gives at once meanwhile.
    `factor_bytes` stay on the device beside `kept`, of what was sent there to be summed, for the next change of
    strength. Where the device's memory is the host's, all of it is host memory and nothing crosses.
    """

    step: Step
    weights: int = 0  # merged into
    touched: int = 0  # the bytes of these
    modules: int = 0  # beside which adapters act
    kept: int = 0
    peak: int = 0
    host_kept: int = 0
    factor_bytes: int = 0
    uploads: int = 0  # bytes that the first apply copies to the device: factors
    downloads: int = 0  # and from it
    switch_uploads: int = 0  # bytes that a change of strength copies to the device; it copies none from it


def forecast(
    step: Step,
    assignments: Sequence[Assignment],
    lives: Iterable[LiveModule],
    device: torch.device,
    factor_room: int | None = 0,
) -> Forecast:
    """Return what a plan's weights and modules take on a device where nothing is held yet.

    The weights of `assignments` are merged into by that step ("beside": by none of them, and `lives` alone count).
    They need not lie on the device: it is what it would be there. `factor_room`: the bytes that factors may keep there
    beside; None: any.
    """
    acting = _acting(lives, device)
    if not assignments:
        return replace(acting, step=step)
    merging = _merging(assignments, "host" if step == "beside" else step, device, factor_room)
    return Forecast(
        step,
        merging.weights,
        merging.touched,
        acting.modules,
        kept=merging.kept + acting.kept,
        # Weights come first: what is computed for them is gone when modules get theirs.
        peak=max(merging.peak, merging.kept + merging.factor_bytes + acting.peak),
        host_kept=merging.host_kept,
        factor_bytes=merging.factor_bytes,
        uploads=merging.uploads + acting.uploads,
        downloads=merging.downloads,
        switch_uploads=merging.switch_uploads + acting.switch_uploads,
    )


def shares_host_memory(device: torch.device) -> bool:
    """Return whether a device's memory is the host's."""
    return device.type in ("cpu", "mps", "meta")


def size_of(parameter: Tensor) -> int:
    """Return the bytes of a parameter's values."""
    return parameter.numel() * parameter.element_size()


# ---- what merging takes ---------------------------------------------------------------------------------------------


class _Outlines:
    """Who has originals of the right shapes, without values; what is measured does not pay for them."""

    def __init__(self, footprint: Footprint) -> None:
        self._footprint = footprint

    def original(self, parameter: nn.Parameter) -> Tensor:
        with self._footprint.apart():
            return torch.empty_like(parameter.data, device="meta")

    def grounded(self, adapter: Adapter, pieces: Sequence[Piece]) -> Adapter:
        return adapter.given(tuple(map(self._of, pieces))) if pieces else adapter

    def _of(self, piece: Piece) -> Tensor:
        if piece.parameter is not None:
            return rows_of(self.original(piece.parameter), piece.part)
        assert piece.base is not None
        return rows_of(piece.base().to("meta"), piece.part)


@dataclass(frozen=True, slots=True)
class _Scratch:
    """What the merge of one weight takes beside W₀ and W′: memory that the next merge uses again, and its own."""

    reused: Mapping[object, int]
    own: int


class _Uncounted(Workspace):
    """Scratch memory that the footprint of one merge leaves out, since the next one has it too."""

    def __init__(self, footprint: Footprint, like: torch.device) -> None:
        super().__init__(like)
        self._footprint = footprint

    def take(self, name: str, rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        with self._footprint.apart():
            return super().take(name, rows, columns, dtype, device)

    def sizes(self) -> dict[object, int]:
        """Return the bytes of all of it."""
        return {key: rounded(tensor.numel() * tensor.element_size()) for key, tensor in self._buffers.items()}


_KNOWN = 4096  # of each kind: shapes of weights times kinds of adapters
_scratches: dict[object, _Scratch] = {}


def _scratch_of(assignment: Assignment, device: torch.device) -> _Scratch:
    data = assignment.parameter.data
    base = None if assignment.precise is None else assignment.precise.dtype
    key = (data.shape, data.stride(), data.dtype, base, device.type, *map(_signature_of_term, assignment.terms))
    known = _scratches.get(key)
    if known is None:
        if len(_scratches) >= _KNOWN:
            _scratches.clear()
        known = _scratches[key] = _find_scratch(assignment, device)
    return known


def _find_scratch(assignment: Assignment, device: torch.device) -> _Scratch:
    footprint = Footprint()
    outlines = _Outlines(footprint)
    out = outlines.original(assignment.parameter)
    weight = out if assignment.precise is None else torch.empty_like(assignment.precise, device="meta")
    workspace = _Uncounted(footprint, device)
    sent = not shares_host_memory(device)
    try:
        terms = [
            replace(
                term,
                adapter=outlines.grounded(_outline(term.adapter) if sent else term.adapter, term.pieces),
                pieces=(),
            )
            for term in assignment.terms
        ]
        with torch.no_grad(), footprint:
            sum_into(out, weight, terms, workspace)
    except RuntimeError:  # it looks at values, or has no meta kernel
        return _Scratch({}, _UNKNOWN * 4 * out.numel())
    return _Scratch(workspace.sizes(), footprint.peak)


def _outline(adapter: Adapter) -> Adapter:
    """Return an adapter as it is once its tensors were sent to a device, without their values."""
    return adapter.on({id(tensor): torch.empty_like(tensor, device="meta") for tensor in adapter.tensors()})


def _signature_of_term(term: Term | LiveTerm) -> object:
    return _signature(term.adapter), term.dyn, term.part, tuple(_signature(piece) for piece in term.pieces)


def _signature(value: Any) -> object:
    """Return what is equal for values that computations take the same memory for."""
    if isinstance(value, Tensor):
        return value.shape, value.dtype
    if isinstance(value, (tuple, list)):
        return tuple(map(_signature, value))
    if isinstance(value, Piece):
        return None if value.parameter is None else value.parameter.shape, value.part
    if isinstance(value, Adapter):
        return type(value), *((name, _signature(inner)) for name, inner in vars(value).items() if name != "keys")
    if value is None or isinstance(value, (int, float, str, torch.dtype)):
        return value
    own = getattr(value, "__dict__", None)
    return type(value), id(value) if own is None else tuple((name, _signature(inner)) for name, inner in own.items())


def _bytes_of(value: Any) -> int:
    """Return the bytes of the tensors of an adapter."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, (tuple, list)):
        return sum(map(_bytes_of, value))
    own = getattr(value, "__dict__", None)
    return 0 if own is None else sum(map(_bytes_of, own.values()))


class _Sending:
    """What is sent to a device for the sums of a plan, and what of it stays there, as Uploads does it."""

    def __init__(self, room: int | None) -> None:
        self._room = room
        self._kept: set[tuple[int, torch.dtype]] = set()
        self.kept = 0  # bytes that stay
        self.sent = 0  # bytes that go up
        self.again = 0  # bytes that go up at each change of strength

    def send(self, assignment: Assignment) -> int:
        """Note what one weight needs; return the bytes of it that are there for its own sum alone."""
        dtype, passing = sum_dtype(assignment.parameter), 0
        files: dict[object, list[Adapter]] = {}
        for term, identity in zip(assignment.terms, assignment.identity, strict=True):
            files.setdefault(identity[0], []).append(term.adapter)  # type: ignore[index]
        for adapters in files.values():
            own = {id(tensor): tensor for adapter in adapters for tensor in adapter.tensors()}
            missing = {key: tensor for key, tensor in own.items() if (key, dtype) not in self._kept}
            packed = packed_bytes(missing.values(), dtype)
            size = rounded(packed)
            self.sent += packed
            if self._room is None or self.kept + size <= self._room:
                self.kept += size
                self._kept |= {(key, dtype) for key in missing}
            else:
                passing += size
                self.again += packed
        return passing


def _merging(assignments: Sequence[Assignment], step: Step, device: torch.device, factor_room: int | None) -> Forecast:
    """Return what merging takes on a device where nothing is held."""
    copies = 0 if step == "host" else 1
    running = peak = touched = 0
    scratch: dict[object, int] = {}
    crosses = not shares_host_memory(device)
    sending = _Sending(factor_room)
    for assignment in assignments:
        size = size_of(assignment.parameter)
        touched += size
        running += copies * rounded(size)
        passing = sending.send(assignment) if crosses else 0
        needed = _scratch_of(assignment, device)
        for key, bytes_ in needed.reused.items():
            scratch[key] = max(scratch.get(key, 0), bytes_)
        peak = max(peak, running + sending.kept + passing + sum(scratch.values()) + needed.own)
    in_host = touched if step == "host" else 0
    return Forecast(
        step,
        len(assignments),
        touched,
        kept=running,
        peak=peak,
        host_kept=in_host,
        factor_bytes=sending.kept,
        uploads=sending.sent,
        downloads=in_host if crosses else 0,
        switch_uploads=sending.again + in_host if crosses else 0,
    )


# ---- what acts beside -----------------------------------------------------------------------------------------------


_besides: dict[object, tuple[int, int]] = {}


def _beside(live: LiveModule) -> tuple[int, int]:
    """Return the bytes that what acts beside a module keeps, and the most that its making takes."""
    parameters = live.module._parameters.items()
    own = [(name, parameter.dtype, parameter.shape) for name, parameter in parameters if parameter is not None]
    terms = [(name, term.strength, _signature_of_term(term)) for name, all_ in live.terms.items() for term in all_]
    key = (type(live.module), *own, *terms, live.unmerged, *live.bases)
    known = _besides.get(key)
    if known is None:
        if len(_besides) >= _KNOWN:
            _besides.clear()
        known = _besides[key] = _find_beside(live)
    return known


def _find_beside(live: LiveModule) -> tuple[int, int]:
    bases = {}
    for name in live.bases:
        shape = layer_shape(live.module, name)
        assert shape is not None
        bases[name] = lambda shape=shape: torch.empty(shape, device="meta")
    footprint = Footprint()
    try:
        with torch.no_grad(), footprint:
            parts = prepare(live.module, live.terms, _Outlines(footprint), bases, live.unmerged, torch.device("meta"))
            kept, peak = footprint.now, footprint.peak
        del parts
    except RuntimeError:  # it looks at values, or has no meta kernel
        shapes = [layer_shape(live.module, name) for name in live.terms]
        most = max(4 * shape.numel() for shape in shapes if shape is not None)
        return most, _UNKNOWN * most
    return kept, peak


def _acting(lives: Iterable[LiveModule], device: torch.device) -> Forecast:
    """Return what acting beside modules takes."""
    kept = peak = factors = modules = 0
    for live in lives:
        own, most = _beside(live)
        peak = max(peak, kept + most)
        kept += own
        modules += 1
        factors += sum(_bytes_of(term.adapter) for terms in live.terms.values() for term in terms)
    up = 0 if shares_host_memory(device) else factors
    return Forecast("beside", modules=modules, kept=kept, peak=peak, uploads=up, switch_uploads=up)
