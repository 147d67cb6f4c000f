"""The arithmetic of a merged weight: W′ = round(W₀ + Σ sᵢ·Δᵢ(W₀)), one float32 sum, one rounding.

Ranks concatenate: all low-rank terms of a target are one product [s₁U₁ … sₙUₙ]·[D₁; …; Dₙ] of summed rank R, so the
cost is one read of W₀, one write of W′ and one GEMM, however many adapters there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lora_runtime.adapters import Adapter, Factors, no_autocast

__all__ = ["Term", "merge_into"]

# Rows are summed in blocks, so that the float32 sum of a half-precision weight stays in the cache and never exists
# as a whole. 2 MB was fastest on 2 CPU cores (4 MB within noise); a whole-weight temporary took twice the time. On
# other devices a block only bounds the temporary.
_BLOCK_BYTES = {"cpu": 2 << 20}
_BLOCK_BYTES_ELSEWHERE = 64 << 20
_WORTH_ONEDNN = 10_000_000
_ROWS = 16  # blocks are multiples of this: GEMM kernels work on tiles of rows


@dataclass(frozen=True, slots=True)
class Term:
    """One adapter at one strength; `dyn` uses only its first `dyn` ranks (the WebUI's `dyn=`)."""

    adapter: Adapter
    strength: float
    dyn: int | None = None


def merge_into(out: Tensor, weight: Tensor, terms: Sequence[Term]) -> None:
    """Fill `out` with round(weight + Σ strength·Δ(weight)).

    `out` has the weight's shape, and its own dtype and device; it may be the very tensor `weight` if every term is
    low-rank. The sum is float32 (float64 for float64 weights), on `out`'s device, in the order of `terms`.
    """
    device = out.device
    sum_dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    with no_autocast(device), _full_precision():
        factors = [(term, term.adapter.factors()) for term in terms]
        low_rank = _concatenate([(t, f) for t, f in factors if f is not None], device, sum_dtype)
        dense = _dense([t for t, f in factors if f is None], weight, device, sum_dtype)
        order = _storage_order(weight)
        flat_out, flat_weight = _as_rows(out, order), _as_rows(weight, order)
        product = None
        if low_rank is not None:
            product = _product(low_rank[0], _reorder_columns(low_rank[1], weight.shape, order))
        flat_dense = None if dense is None else _as_rows(dense, order)
        for rows in _row_blocks(flat_out):
            _merge_rows(flat_out[rows], flat_weight[rows], rows, product, flat_dense)
        if flat_out.untyped_storage().data_ptr() != out.untyped_storage().data_ptr():
            out.copy_(flat_out.view(out.shape))  # strides that no permutation makes contiguous


def _merge_rows(
    out: Tensor, weight: Tensor, rows: slice, product: Callable[[slice], Tensor] | None, dense: Tensor | None
) -> None:
    """Sum one block of rows, (rows, columns), and round it into `out`.

    The delta is summed before W₀ joins it: `addmm` may add the products to W₀ one by one, with a rounding of W₀'s size
    each (seen for a single row, and where a kernel splits a high rank).
    """
    if product is not None:
        delta = product(rows)
        if dense is not None:
            delta.add_(dense[rows])
    else:
        assert dense is not None
        delta = dense[rows]
    base = weight.to(out.device)
    if out.dtype == base.dtype == delta.dtype:
        torch.add(base, delta, out=out)
    else:
        out.copy_(delta.add_(base.to(delta.dtype)))


def _product(up: Tensor, down: Tensor) -> Callable[[slice], Tensor]:
    """Return the function that gives some rows of up @ down, (out, R) and (R, columns).

    On CPUs oneDNN's GEMM takes 0.5 to 0.85 of the time of torch.mm for blocks of this shape (400 × 96 × 1280 on an AMD
    EPYC); `to_mkldnn` is the public way to it. Its set-up makes it slower below about 10 million multiplications.
    """
    large = up.shape[0] * down.numel() >= _WORTH_ONEDNN
    if large and up.device.type == "cpu" and up.dtype == torch.float32 and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        packed = down.t().contiguous().to_mkldnn()

        def by_onednn(rows: slice) -> Tensor:
            product: Tensor = F.linear(up[rows].to_mkldnn(), packed).to_dense()
            return product

        return by_onednn
    return lambda rows: torch.mm(up[rows], down)


def _concatenate(
    terms: Sequence[tuple[Term, Factors]], device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor] | None:
    """Return [s₁U₁ … sₙUₙ], (out, R), and [D₁; …; Dₙ], (R, columns), or None without any terms."""
    if not terms:
        return None
    ups, downs = [], []
    for term, factors in terms:
        up = factors.up[:, : term.dyn].to(device=device, dtype=dtype)
        ups.append(up * (term.strength * factors.scale))
        downs.append(factors.down[: term.dyn].to(device=device, dtype=dtype))
    return torch.cat(ups, dim=1), torch.cat(downs, dim=0)


def _dense(terms: Sequence[Term], weight: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor | None:
    """Return the sum of the deltas that have no factors, of the weight's shape, or None without any terms."""
    total: Tensor | None = None
    for term in terms:
        delta = term.adapter.delta(weight.to(device)).to(dtype)
        total = delta * term.strength if total is None else total.add_(delta, alpha=term.strength)
    return total


def _storage_order(weight: Tensor) -> tuple[int, ...]:
    """Return the order of dimensions in which `weight` lies in memory; the first dimension stays first.

    A channels_last convolution weight, (out, in, h, w), lies as (out, h, w, in).
    """
    strides = weight.stride()
    return (0, *sorted(range(1, weight.dim()), key=lambda dim: -strides[dim]))


def _as_rows(tensor: Tensor, order: tuple[int, ...]) -> Tensor:
    """Return `tensor` as (dimension 0, all others in `order`): a view where its strides allow, else a copy."""
    return tensor.permute(order).reshape(tensor.shape[0], -1)


def _reorder_columns(down: Tensor, shape: torch.Size, order: tuple[int, ...]) -> Tensor:
    """Return `down`, (R, in·k…), with its columns in the order in which the weight lies in memory."""
    if order == tuple(range(len(shape))):
        return down
    return down.view(down.shape[0], *shape[1:]).permute(order).reshape(down.shape[0], -1)


def _row_blocks(rows: Tensor) -> Iterator[slice]:
    """Yield slices that cover the rows of a (rows, columns) tensor in blocks of about `_BLOCK_BYTES` as float32."""
    budget = _BLOCK_BYTES.get(rows.device.type, _BLOCK_BYTES_ELSEWHERE)
    step = max(_ROWS, budget // max(1, 4 * rows.shape[1]) // _ROWS * _ROWS)
    for start in range(0, rows.shape[0], step):
        yield slice(start, start + step)


@contextmanager
def _full_precision() -> Iterator[None]:
    """Forbid TF32 and bfloat16 inside float32 products: they would cost 13 bits of a delta.

    The switches are process-wide; they are turned for the time of a merge only if a host turned them before.
    """
    # torch >= 2.9 has a setting per backend, and reading the older process-wide one raises once those were used.
    if hasattr(torch.backends, "fp32_precision"):
        backends: list[Any] = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]  # type: ignore[attr-defined]
        before = [backend.fp32_precision for backend in backends]
        inherited = torch.backends.fp32_precision
        changed = [(b, p) for b, p in zip(backends, before, strict=True) if (inherited if p == "none" else p) in _FAST]
        for backend, _ in changed:
            backend.fp32_precision = "ieee"
        try:
            yield
        finally:
            for backend, precision in changed:
                backend.fp32_precision = precision
        return
    precision = torch.get_float32_matmul_precision()
    if precision != "highest":
        torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        if precision != "highest":
            torch.set_float32_matmul_precision(precision)


_FAST = {"tf32", "bf16"}
