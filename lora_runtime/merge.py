"""The arithmetic of a merged weight: W′ = round(W₀ + Σ sᵢ·Δᵢ(W₀)), one float32 sum, one rounding.

Ranks concatenate: all low-rank terms of a target are one product [s₁U₁ … sₙUₙ]·[D₁; …; Dₙ] of summed rank R, so the
cost is one read of W₀, one write of W′ and one GEMM, however many adapters there are.

An adapter for a part of a weight (q of a fused q, k and v) sees that part as its weight; its delta is added there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from lora_runtime.adapters import Adapter, Factors, no_autocast
from lora_runtime.adapters.base import sum_dtype
from lora_runtime.dialects import WHOLE, Part
from lora_runtime.errors import StrengthError
from lora_runtime.precision import full_precision
from lora_runtime.products import block_bytes, product

__all__ = [
    "Piece",
    "Term",
    "Workspace",
    "delta_of",
    "may_overflow",
    "merge_into",
    "region_of",
    "rows_of",
    "sum_into",
    "too_large",
]

_ROWS = 16  # blocks are multiples of this: GEMM kernels work on tiles of rows


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """What one parameter has of a weight that a file has whole; `precise` as in an Assignment.

    `base` gives W₀ where the parameter's own data is not W₀.
    """

    parameter: nn.Parameter | None
    part: Part
    precise: Tensor | None = None
    base: Callable[[], Tensor] | None = None


@dataclass(frozen=True, slots=True)
class Term:
    """One adapter at one strength; `dyn` uses only its first `dyn` ranks (the WebUI's `dyn=`).

    `pieces`: the parameters whose originals the adapter has to be given first; whoever keeps the originals does.
    `source`: the adapter as it is in host memory, where `adapter` has its tensors on a device; None: `adapter` itself.
    """

    adapter: Adapter
    strength: float
    dyn: int | None = None
    part: Part = WHOLE
    pieces: tuple[Piece, ...] = ()
    source: Adapter | None = None


def region_of(weight: Tensor, part: Part) -> Tensor:
    """Return a view of a part of a weight, in the shape in which files have it."""
    if part is WHOLE:
        return weight
    rows = weight.shape[0] // part.count
    view = weight[part.index * rows : (part.index + part.span) * rows]
    if part.inputs is not None:
        view = view[:, : part.inputs]
    return view.mT if part.transposed else view


def delta_of(weight: Tensor, adapter: Adapter, dyn: int | None = None, part: Part = WHOLE) -> Tensor:
    """Return Δ(weight) of one adapter at strength 1, in float32 and the shape of `weight`; 0 outside of its part."""
    factors = adapter.factors()
    with no_autocast(weight.device), full_precision():
        here = region_of(weight, part)
        if factors is None:
            delta = _delta(adapter, _swap(here, part)).to(sum_dtype(weight))
        else:
            up, down = (f.to(weight.device, sum_dtype(weight)) for f in _of_ranks(factors, dyn))
            delta = (up @ down).mul_(factors.scale).reshape(here.shape)
        if part == WHOLE:
            return delta
        total = torch.zeros(weight.shape, dtype=sum_dtype(weight), device=weight.device)
        region_of(total, part).copy_(_swap(delta, part))
        return total


def _delta(adapter: Adapter, weight: Tensor) -> Tensor:
    """Return Δ(weight) on the weight's device, computed on the CPU where the device lacks an operation for it."""
    try:
        return adapter.delta(weight)
    except NotImplementedError:
        if weight.device.type == "cpu":
            raise
    return adapter.delta(weight.cpu()).to(weight.device)


def rows_of(weight: Tensor, part: Part) -> Tensor:
    """Return a part of a weight with its rows in the order in which files have them."""
    return _swap(region_of(weight, part), part)


def _swap(rows: Tensor, part: Part) -> Tensor:
    """Return rows with their halves swapped where those of files are: both ways the same."""
    return torch.roll(rows, rows.shape[0] // 2, 0) if part.swapped else rows


class Workspace:
    """Scratch memory that one merge leaves to the next.

    Fresh memory for each block costs page faults: an apply to SD1.5's attention took 1.9 times as long without this,
    in a process whose allocator had not yet learnt to keep blocks of this size.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        """Start without memory. `device`: whose blocks the sum runs in; None: those of each weight's own."""
        self._device = device
        self._buffers: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def take(self, name: str, rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return an uninitialised (rows, columns) tensor, valid until the next `take` of this name."""
        size, key = rows * columns, (name, dtype, device)
        buffer = self._buffers.get(key)
        if buffer is None or buffer.numel() < size:
            buffer = None
            self._buffers.pop(key, None)  # first: a device may have no room for both
            buffer = self._buffers[key] = torch.empty(size, dtype=dtype, device=device)
        return buffer.as_strided((rows, columns), (columns, 1))

    def blocks(self, rows: Tensor) -> Iterator[slice]:
        """Yield slices that cover the rows of a (rows, columns) tensor in blocks of about so many bytes as float32."""
        step = self.height(rows.shape[1], rows.device)
        for start in range(0, rows.shape[0], step):
            yield slice(start, min(start + step, rows.shape[0]))

    def height(self, columns: int, device: torch.device) -> int:
        """Return how many rows of so many columns a block has."""
        budget = block_bytes(self._device or device)
        return max(_ROWS, budget // max(1, 4 * columns) // _ROWS * _ROWS)


def merge_into(out: Tensor, weight: Tensor, terms: Sequence[Term], workspace: Workspace | None = None) -> None:
    """Fill `out` with round(weight + Σ strength·Δ(weight)).

    `out` has the weight's shape, and its own dtype and device; it may be the very tensor `weight`, which is read
    before it is written. The sum is float32 (float64 for float64 weights), on `out`'s device, in the order of `terms`.
    Raises OverflowError where a sum is beyond what the dtype of `out` can hold; `out` is of no use then.
    """
    with no_autocast(out.device), full_precision():
        factors, dense = sum_into(out, weight, terms, workspace or Workspace())
        if _can_overflow(factors, dense, out.dtype) and not _is_finite(out) and _was_finite(weight, out):
            raise OverflowError(f"beyond {torch.finfo(out.dtype).max:g}, the most that {out.dtype} can hold")


def sum_into(
    out: Tensor, weight: Tensor, terms: Sequence[Term], workspace: Workspace
) -> tuple[list[tuple[Term, Factors | None]], Tensor | None]:
    """Do what `merge_into` does without a look at the values; return each term's factors, and the dense sum.

    It reads no value back, so that the meta device can tell what memory it takes.
    """
    factors = [_factored(term, out) for term in terms]
    joined: list[tuple[Term, Factors]] = []
    others: list[tuple[Term, Factors | None]] = []
    for term, own in factors:
        if own is not None and (term.part is WHOLE or term.part == WHOLE):
            joined.append((term, own))
        else:
            others.append((term, own))
    order = _storage_order(weight)
    block = _Block(
        _as_rows(out, order),
        _as_rows(weight, order),
        _concatenate(joined, out, order, workspace),
        _dense(others, weight, out, order),
        workspace,
    )
    for rows in workspace.blocks(block.out):
        block.merge(rows)
    if block.out is not out and block.out.untyped_storage()._cdata != out.untyped_storage()._cdata:
        # Strides that no permutation makes contiguous: what was filled is a copy.
        out.permute(order).copy_(block.out.view(out.permute(order).shape))
    return factors, block.dense


@dataclass(frozen=True, slots=True)
class _Block:
    """One merge, all tensors as (rows, columns) with the columns in the order in which the weight lies in memory."""

    out: Tensor
    weight: Tensor
    low_rank: _LowRank | None
    dense: Tensor | None
    workspace: Workspace

    def merge(self, rows: slice) -> None:
        """Sum some rows and round them into `out`.

        The delta is summed before W₀ joins it: `addmm` may add the products to W₀ one by one, with a rounding of W₀'s
        size each (seen for a single row, and where a kernel splits a high rank).
        """
        out, weight = self.out[rows], self.weight[rows]
        height, width = out.shape
        dtype = sum_dtype(weight)
        if self.low_rank is None:
            assert self.dense is not None
            delta = self.dense[rows]
        else:
            take = partial(self.workspace.take, "delta", height, width, dtype, out.device)
            delta = product(self.low_rank.up(rows, self.workspace), self.low_rank.down, take)
            if self.dense is not None:
                delta.add_(self.dense[rows])
        if weight.dtype == dtype and weight.device == out.device:
            base = weight
        else:
            base = self.workspace.take("base", height, width, dtype, out.device).copy_(weight)
        if out.dtype == dtype:
            torch.add(base, delta, out=out)
        else:
            out.copy_(delta.add_(base))


# A change smaller than half the last step before overflow rounds back to the largest number, whatever W₀ is.
_HARMLESS = {torch.float16: 16.0, torch.float8_e4m3fn: 16.0, torch.float8_e5m2: 4096.0}
_HUGE = 1e30  # for dtypes with the range of float32, which only a strength of such a size can leave


def _can_overflow(terms: Sequence[tuple[Term, Factors | None]], dense: Tensor | None, dtype: torch.dtype) -> bool:
    """Return whether a sum can be beyond what a dtype holds, by a bound of its change: |U·D| ≤ ‖U‖·‖D‖.

    Two norms of the factors where they lie take 1 % of a merge's time; a look at every W′ took 4 to 15 %.
    """
    strengths = [abs(term.strength) * (1.0 if factors is None else abs(factors.scale)) for term, factors in terms]
    harmless = _HARMLESS.get(dtype, _HUGE)
    if harmless == _HUGE and torch.finfo(dtype).bits > 8:
        return not sum(strengths) < _HUGE
    bound = 0.0
    for strength, (term, factors) in zip(strengths, terms, strict=True):
        if factors is not None:
            # To read a norm from a device is to wait for it.
            own = (None if term.source is None else term.source.factors()) or factors
            bound += strength * _norm(own.up) * _norm(own.down)
    if dense is not None and any(factors is None for _, factors in terms):
        bound += float(torch.linalg.vector_norm(dense, float("inf")))
    return not bound < harmless


def may_overflow(terms: Sequence[Term], dtype: torch.dtype) -> bool:
    """Return whether W′ of a finite W₀ can be beyond what a dtype holds, by the factors alone; True without factors."""
    factors = [(term, term.adapter.factors()) for term in terms]
    return any(own is None for _, own in factors) or _can_overflow(factors, None, dtype)


def too_large(
    place: object, weight: Tensor, terms: Sequence[Term], files: Sequence[str], error: object
) -> StrengthError:
    """Return the error for a W′ that overflows (`error` says what it is beyond): it names the file that adds most.

    `files`: the SHA-256 of each term's file.
    """
    sizes = [abs(t.strength) * float(delta_of(weight, t.adapter, t.dyn, t.part).abs().max()) for t in terms]
    most = sizes.index(max(sizes))
    message = f"{place} would be {error}, at strength {terms[most].strength:g}: use a lower strength"
    return StrengthError(message, files[most])


def _factored(term: Term, out: Tensor) -> tuple[Term, Factors | None]:
    """Return a term with its factors, if it has any that a merge is better done with."""
    factors = term.adapter.factors()
    if factors is not None:
        return term, factors
    dtype = sum_dtype(out)
    # Their ranks are no ranks of the file's, of which `dyn` would take the first.
    return replace(term, dyn=None), term.adapter.products(lambda tensor: tensor.to(out.device, dtype))


def _norm(factor: Tensor) -> float:
    return float(torch.linalg.vector_norm(factor, dtype=torch.float32))


def _was_finite(weight: Tensor, out: Tensor) -> bool:
    """Return whether W₀ had only finite values; what `out` has taken the place of is not known any more."""
    return weight is out or _is_finite(weight)


def _is_finite(tensor: Tensor) -> bool:
    """Return whether all values are finite; `isfinite` would take a hundred times as long for half precision."""
    # Not aminmax: torch 2.1 has it for no halves on a CPU.
    wide = tensor if tensor.element_size() > 1 else tensor.float()
    least, most = wide.min(), wide.max()
    return math.isfinite(float(least)) and math.isfinite(float(most))


@dataclass(slots=True)
class _LowRank:
    """All low-rank terms of a weight as one product of summed rank R, [U₁ … Uₙ]·[s₁D₁; …; sₙDₙ]."""

    ups: list[Tensor]  # (rows, rank) each, as their files have them
    ranks: list[int]
    down: Tensor  # (R, columns)
    joined: Tensor | None = None  # the rows from `start` of [U₁ … Uₙ]
    start: int = 0

    def up(self, rows: slice, workspace: Workspace) -> Tensor:
        """Return these rows of [U₁ … Uₙ], (rows, R), which follow on those asked for last.

        They are joined some at a time: whole they were 4 MB for SD1.5, 0.8 % of its touched weights in bfloat16.
        """
        joined = self.joined
        if joined is None or rows.stop > self.start + joined.shape[0]:
            joined = self._join(rows, workspace)
        if rows.stop - rows.start == joined.shape[0]:
            return joined
        return joined[rows.start - self.start : rows.stop - self.start]

    def _join(self, rows: slice, workspace: Workspace) -> Tensor:
        total, (rank, _), down = self.ups[0].shape[0], self.down.shape, self.down
        stop = min(total, rows.start + max(rows.stop - rows.start, workspace.height(2 * rank, down.device)))
        joined = workspace.take("up", stop - rows.start, rank, down.dtype, down.device)
        for own, up in zip(joined.split_with_sizes(self.ranks, 1), self.ups, strict=True):
            own.copy_(up if joined.shape[0] == total else up[rows.start : stop])
        self.joined, self.start = joined, rows.start
        return joined


def _concatenate(
    terms: Sequence[tuple[Term, Factors]], out: Tensor, order: tuple[int, ...], workspace: Workspace
) -> _LowRank | None:
    """Return the factors of all terms, joined and scaled, or None without any terms."""
    if not terms:
        return None
    pairs = [(term.strength * factors.scale, *_of_ranks(factors, term.dyn)) for term, factors in terms]
    ranks = [up.shape[1] for _, up, _ in pairs]
    downs = workspace.take("down", sum(ranks), pairs[0][2].shape[1], sum_dtype(out), out.device)
    for (scale, _, down), own in zip(pairs, downs.split_with_sizes(ranks), strict=True):
        own.copy_(_reorder_columns(down, out.shape, order)).mul_(scale)
    return _LowRank([up for _, up, _ in pairs], ranks, downs)


def _of_ranks(factors: Factors, dyn: int | None) -> tuple[Tensor, Tensor]:
    """Return the two factors, of their first `dyn` ranks only where that is not None."""
    return (factors.up, factors.down) if dyn is None else (factors.up[:, :dyn], factors.down[:dyn])


def _dense(
    terms: Sequence[tuple[Term, Factors | None]], weight: Tensor, out: Tensor, order: tuple[int, ...]
) -> Tensor | None:
    """Return the sum of the deltas without factors and of those for parts, (rows, columns), or None without any."""
    total: Tensor | None = None
    dtype = sum_dtype(weight)
    for term, factors in terms:
        here = region_of(weight, term.part)
        if factors is None:
            delta = _delta(term.adapter, _swap(here.to(out.device), term.part)).to(dtype)
        else:
            up, down = _of_ranks(factors, term.dyn)
            delta = (up.to(out.device, dtype) @ down.to(out.device, dtype)).mul_(factors.scale).reshape(here.shape)
        if total is None and term.part == WHOLE:
            total = delta * term.strength
            continue
        if total is None:
            total = torch.zeros(weight.shape, dtype=dtype, device=out.device)
        region_of(total, term.part).add_(_swap(delta, term.part), alpha=term.strength)
    return None if total is None else _as_rows(total, order)


def _storage_order(weight: Tensor) -> tuple[int, ...]:
    """Return the order of dimensions in which `weight` lies in memory; the first dimension stays first.

    A channels_last convolution weight, (out, in, h, w), lies as (out, h, w, in).
    """
    strides = weight.stride()
    return (0, *sorted(range(1, weight.dim()), key=lambda dim: -strides[dim]))


def _as_rows(tensor: Tensor, order: tuple[int, ...]) -> Tensor:
    """Return `tensor` as (dimension 0, all others in `order`): a view where its strides allow, else a copy."""
    return tensor if tensor.dim() == 2 else tensor.permute(order).reshape(tensor.shape[0], -1)


def _reorder_columns(down: Tensor, shape: torch.Size, order: tuple[int, ...]) -> Tensor:
    """Return `down`, (R, in·k…), with its columns in the order in which the weight lies in memory."""
    if order == tuple(range(len(shape))):
        return down
    return down.view(down.shape[0], *shape[1:]).permute(order).reshape(down.shape[0], -1)
