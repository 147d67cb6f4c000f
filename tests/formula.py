"""The formula in float64, and adapters made of given factors: what merging and patching are held against."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lora_runtime.adapters import Adapter, Factors
from lora_runtime.merge import Term

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


class LowRank(Adapter):
    """A product of two given factors; (out, r) and (r, columns)."""

    algorithm = "lora"

    def __init__(self, up: Tensor, down: Tensor, scale: float = 1.0) -> None:
        self.keys = ()
        self.rank = down.shape[0]
        self.alpha = None
        self.scale = scale
        self._factors = Factors(up, down, scale)

    def misfit(self, shape: torch.Size) -> str | None:
        return None

    def factors(self) -> Factors | None:
        return self._factors

    def delta(self, weight: Tensor) -> Tensor:
        raise NotImplementedError


class Dense(LowRank):
    """The same change, given only as a dense delta."""

    def factors(self) -> Factors | None:
        return None

    def delta(self, weight: Tensor) -> Tensor:
        f = self._factors
        return (self.scale * (f.up.double() @ f.down.double())).float().reshape(weight.shape)


def random_terms(count: int, shape: Sequence[int], rank: int = 8, dtype: torch.dtype = torch.float16) -> list[Term]:
    """Return terms with random factors and strengths for a weight of this shape."""
    columns = math.prod(shape[1:])
    generator = torch.Generator().manual_seed(count)
    return [
        Term(
            LowRank(
                (torch.randn(shape[0], rank, generator=generator) * 0.05).to(dtype),
                (torch.randn(rank, columns, generator=generator) * 0.05).to(dtype),
                scale=0.5 + 0.1 * i,
            ),
            strength=(-1) ** i * (0.3 + 0.17 * i),
        )
        for i in range(count)
    ]


def reference(weight: Tensor, terms: Sequence[Term]) -> tuple[Tensor, Tensor]:
    """Return W₀ + Σ s·scale·U·D and Σ |s·scale||U||D|, both in float64."""
    total, size = weight.double(), torch.zeros_like(weight, dtype=torch.float64)
    for term in terms:
        f = term.adapter._factors  # type: ignore[attr-defined]
        up, down = f.up.double()[:, : term.dyn], f.down.double()[: term.dyn]
        scale = term.strength * f.scale
        total = total + scale * (up @ down).reshape(weight.shape)
        size = size + abs(scale) * (up.abs() @ down.abs()).reshape(weight.shape)
    return total, size


def ulp(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the distance between neighbours of `dtype` around each value."""
    info = torch.finfo(dtype)
    exponent = torch.floor(torch.log2(exact.abs().clamp(min=info.tiny)))
    return torch.exp2(exponent) * info.eps


def assert_rounded_once(merged: Tensor, weight: Tensor, terms: Sequence[Term]) -> None:
    """Fail where an element is further than half a unit in the last place (and the float32 sum) from the formula."""
    exact, size = reference(weight, terms)
    error = (merged.double() - exact).abs()
    allowed = 0.51 * ulp(exact, weight.dtype) + 1e-6 * size
    assert not (error > allowed).any(), f"worst {(error / allowed).max().item():.3f} of the allowed error"
