"""DoRA: W′ = m · V / ‖V‖ with V = W₀ + D, where D is the sum of whatever else the module's weight has at strength 1.

Liu et al. 2024, arXiv:2402.09353. D may be a LoRA, LoHa, LoKr, …; the norm is that of each output, or of each input.
A strength s is that of the sum of all adapters, W₀ + s·(W′ − W₀).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lora_runtime.adapters.base import Adapter, Algorithm, Cast, Dense, Group
from lora_runtime.adapters.embedding import LowRankTable
from lora_runtime.adapters.forms import Form, Map, multiply, scaled
from lora_runtime.key_endings import ENDINGS

__all__ = ["ALGORITHM", "Dora", "build", "dora_delta"]


_ROWS = 1024  # of W₀ at a time, for its lengths


def dora_delta(weight: Tensor, inner: Tensor, magnitude: Tensor, axis: int) -> Tensor:
    """Return m · V/‖V‖ − W₀ with V = W₀ + D, from W₀ and D (out, in, k…) and m, a number for each place of `axis`."""
    total = weight + inner
    others = tuple(dim for dim in range(weight.ndim) if dim != axis)
    norm = torch.linalg.vector_norm(total, dim=others, keepdim=True)
    # What has no length has no direction either, and stays zero.
    factor = magnitude.reshape(norm.shape) / torch.where(norm > 0, norm, 1.0)
    return (inner * factor).addcmul_(weight, factor - 1)


@dataclass(frozen=True, eq=False)
class Dora(Dense):
    """Other adapters of the same weight, with a length for each output or input."""

    algorithm: ClassVar[str] = "dora"
    base_dependent: ClassVar[bool] = True

    inner: tuple[Adapter, ...]
    magnitude: Tensor  # (out,), (1, out, 1…), (out, 1…) or (1, in, 1…)
    on_output: bool  # whether the key says that the lengths are those of the outputs, whatever the shape
    keys: tuple[str, ...]
    rank: int
    alpha: float | None

    @property
    def weight_shape(self) -> tuple[int, ...] | None:
        """The shape of the weight that its inner adapters were trained on."""
        return self.inner[0].weight_shape

    def misfit(self, shape: torch.Size) -> str | None:
        """Return None where all of the inner adapters and the lengths fit a weight of that shape."""
        for adapter in self.inner:
            if (reason := adapter.misfit(shape)) is not None:
                return reason
        if len(shape) < 2 or self._axis(shape) is None:
            return f"its magnitude is {tuple(self.magnitude.shape)}, the weight is {tuple(shape)}"
        return None

    def change(self, weight: Tensor, cast: Callable[[Tensor], Tensor]) -> Tensor:
        """Return m · V/‖V‖ − W₀."""
        axis = self._axis(weight.shape)
        assert axis is not None, "misfit was not asked"
        inner = self.inner[0].delta(weight)
        for adapter in self.inner[1:]:
            inner = inner + adapter.delta(weight)
        return dora_delta(cast(weight), inner, cast(self.magnitude), axis)

    def forms(self, shape: torch.Size, cast: Cast, original: Callable[[], Tensor]) -> tuple[Form, ...] | None:
        """Return the inner changes, multiplied by m/‖W₀ + D‖, and what that factor makes of W₀ itself.

        None where an inner adapter has only a dense Δ, or where it changes outputs and the lengths are those of inputs.
        """
        inner: list[Form] = []
        for adapter in self.inner:
            forms = adapter.forms(shape, cast, original)
            if forms is None:
                return None
            inner += forms
        axis = self._axis(shape)
        assert axis is not None, "misfit was not asked"
        if axis == 1 and any(isinstance(form, Map) and form.of in ("output", "pixels") for form in inner):
            return None
        lengths = self._lengths(original(), axis, cast)
        factor = cast(self.magnitude).flatten() / torch.where(lengths > 0, lengths, 1.0)
        if axis == 0:
            return *scaled(tuple(inner), shape, by_output=factor), Map("output", multiply, (factor - 1,))
        return *scaled(tuple(inner), shape, by_input=factor), Map("before", multiply, (factor - 1,))

    def _lengths(self, weight: Tensor, axis: int, cast: Cast) -> Tensor:
        """Return ‖W₀ + D‖ for each output or input, (n,), in blocks of rows: V is never there as a whole in float32."""
        factors = [adapter.factors() for adapter in self.inner]
        dense = [adapter.delta(weight) for adapter, own in zip(self.inner, factors, strict=True) if own is None]
        thin = [(cast(own.up), cast(own.down) * own.scale) for own in factors if own is not None]
        squares = []
        for start in range(0, weight.shape[0], _ROWS):
            rows = slice(start, start + _ROWS)
            total = cast(weight[rows])
            for up, down in thin:
                total = total + (up[rows] @ down).reshape(total.shape)
            for delta in dense:
                total = total + delta[rows]
            square = total.square().transpose(0, axis).flatten(1).sum(1)
            squares.append(square)
        return (torch.cat(squares) if axis == 0 else torch.stack(squares).sum(0)).sqrt()

    def _axis(self, shape: torch.Size) -> int | None:
        """Return the axis of a weight that the lengths belong to: 0 outputs, 1 inputs; None where they fit neither.

        The name of the key goes first, then the shape: (out, 1…) is by output even for a square weight. A single
        dimension that fits both is the inputs: such files are older than the outputs.
        """
        own = tuple(self.magnitude.shape)
        count = self.magnitude.numel()
        fits_output, fits_input = count == shape[0], count == shape[1]
        if self.on_output:
            return 0 if fits_output else None
        if len(own) >= 2 and math.prod(own[1:]) == 1 and fits_output:
            return 0
        if len(own) >= 2 and own[1] != count:
            return None
        return 1 if fits_input else 0 if len(own) < 2 and fits_output else None


def build(group: Group) -> list[Dora]:
    """Return the adapter that takes the place of `group.inner`; ValueError says what is missing or contradictory."""
    (role, magnitude), *others = group.tensors.items()
    if others:
        raise ValueError(f"two magnitudes on one module: {group.shapes()}")
    if not group.inner:
        raise ValueError("a magnitude (DoRA) without factors")
    if magnitude.numel() == 0 or max(magnitude.shape, default=1) != magnitude.numel():
        raise ValueError(f"the magnitude (DoRA) is no vector: {group.shapes()}")
    keys = (*(key for adapter in group.inner for key in adapter.keys), *group.keys)
    first = group.inner[0]
    # What a layer puts out is a column of an embedding's table.
    on_output = role != "scale" and not isinstance(first, LowRankTable)
    return [Dora(group.inner, magnitude, on_output, keys, first.rank, first.alpha)]


ALGORITHM = Algorithm(
    "dora",
    ENDINGS["dora"],
    build,
    shared=(),
    wraps=True,
)
