"""Attention layers whose q, k and v are fused: the separate layers stay in the tree, and nobody calls them.

`fuse_qkv_projections()` of diffusers copies to_q, to_k and to_v into one new layer, and attention runs that. A file's
name for one of the three then means its rows of the fused weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from inspect import getattr_static
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lora_runtime.dialects import Part

__all__ = ["FusedPart", "fused_parts", "give_back_copies", "runs_fused"]

# The fused layer, and the layers whose rows it has, in their order; the layers that are there count.
_FUSIONS = (
    ("to_qkv", ("to_q", "to_k", "to_v")),
    ("to_kv", ("to_k", "to_v")),
    ("to_added_qkv", ("add_q_proj", "add_k_proj", "add_v_proj")),
    ("to_added_kv", ("add_k_proj", "add_v_proj")),
)
_FUSED = frozenset(fused for fused, _ in _FUSIONS)


class FusedPart(NamedTuple):
    """What a layer that is not called any more is in the layer that runs in its place."""

    layer: nn.Module
    part: Part


def runs_fused(attention: nn.Module) -> bool:
    """Return whether an attention layer runs its fused layers.

    Newer attentions of diffusers say so themselves and delete the fused layers when they are taken apart. The older
    class keeps both its word and the layers then, and only the processor tells. Some of the newer have fused layers too
    that their processor never asks for (LTX's): its code tells.
    """
    if not attention.__dict__.get("fused_projections", False):
        return False
    processor: Any = getattr(attention, "processor", None)
    if "Fused" in type(processor).__name__:
        return True
    kind: Any = type(processor)
    return hasattr(type(attention), "unfuse_projections") and (processor is None or _asks(kind))


@lru_cache(maxsize=256)
def _asks(processor: Any) -> bool:
    """Return whether the code of a processor, or of a function that it calls, speaks of fused layers."""
    return _speaks(getattr_static(processor, "__call__", None), 2)


def _speaks(function: Any, deeper: int) -> bool:
    code = getattr(function, "__code__", None)
    if code is None:
        return False
    if any("fused" in name or name in _FUSED for name in code.co_names):
        return True
    called = (function.__globals__.get(name) for name in code.co_names) if deeper else ()
    return any(_speaks(other, deeper - 1) for other in called)


def fused_parts(attention: nn.Module) -> Mapping[str, FusedPart]:
    """Return by the name of each child that is fused where its rows are now; empty where nothing is."""
    if "fused_projections" not in attention.__dict__ or not runs_fused(attention):
        return {}
    found: dict[str, FusedPart] = {}
    for fused, names in _FUSIONS:
        layer = attention._modules.get(fused)
        rows = [getattr(attention._modules.get(name), "out_features", None) for name in names]
        if layer is None or not all(isinstance(count, int) for count in rows):
            continue
        counts = [int(count) for count in rows if count is not None]
        if sum(counts) != getattr(layer, "out_features", None):
            continue
        unit, start = math.gcd(*counts), 0  # q can have more rows than k and v
        for name, count in zip(names, counts, strict=True):
            part = Part(start // unit, sum(counts) // unit, span=count // unit)
            found.setdefault(name, FusedPart(layer, part))
            start += count
    return found


def give_back_copies(modules: Iterable[nn.Module], original: Callable[[nn.Parameter], Tensor]) -> int:
    """Put W₀ into rows of fused layers that are copies of what patched layers show; return in how many parameters.

    Whoever fuses within a `with` block copies W′, and restoring the separate layers would leave it in the fused one. A
    row is written only where it equals what the separate layer shows, bit for bit, so that what somebody else has put
    there stays. To be called before the separate layers are restored.
    """
    count = 0
    for attention in modules:
        for name, found in fused_parts(attention).items():
            child = attention._modules[name]
            assert child is not None
            for own in ("weight", "bias"):
                shown, copy = child._parameters.get(own), found.layer._parameters.get(own)
                if shown is None or copy is None or shown.is_meta or original(shown).data_ptr() == shown.data_ptr():
                    continue
                size = copy.shape[0] // found.part.count
                rows = copy.data[found.part.index * size : (found.part.index + found.part.span) * size]
                if rows.shape == shown.shape and rows.dtype == shown.dtype and torch.equal(rows, shown.data):
                    rows.copy_(original(shown))
                    count += 1
    return count
