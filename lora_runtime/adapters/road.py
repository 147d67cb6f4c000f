"""RoAd: W′ = R·W₀ and b′ = R·b₀, where R turns and scales pairs of outputs. Liao and Monz 2024, arXiv:2409.00119.

Outputs lie in groups; the first half of a group is paired with the second. A pair (x, y) becomes
(c·x − d·y, c′·y + d′·x) with c = α·cos θ and d = α·sin θ. By the variant, θ and α are those of a pair ("road_1"), of
each output ("road_2"), or of each of the four numbers ("road_4").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor

from lora_runtime.adapters.base import Algorithm, Cast, Dense, Group
from lora_runtime.adapters.forms import Form, Map
from lora_runtime.key_endings import ENDINGS

__all__ = ["ALGORITHM", "Pairs", "build"]

_ANGLES = MappingProxyType({"road_1": (1, 2), "road_2": (1, 1), "road_4": (2, 1)})  # angles for so many outputs


@dataclass(frozen=True, eq=False)
class Pairs(Dense):
    """Turned pairs of outputs, of the weight or of the bias."""

    algorithm: ClassVar[str] = "road"
    base_dependent: ClassVar[bool] = True

    theta: Tensor  # (out / 2,), (out,) or (2 · out,)
    alpha_of_each: Tensor  # the same
    variant: str
    group: int  # outputs in a group
    outputs: int
    keys: tuple[str, ...]
    parameter: str = "weight"

    def misfit(self, shape: torch.Size) -> str | None:
        """Return None where the weight, or the bias, has as many outputs."""
        if len(shape) == (2 if self.parameter == "weight" else 1) and shape[0] == self.outputs:
            return None
        return f"made for {self.outputs} outputs, the {self.parameter} is {tuple(shape)}"

    def change(self, weight: Tensor, cast: Callable[[Tensor], Tensor]) -> Tensor:
        """Return R·W₀ − W₀."""
        straight, crossed = self._numbers(cast)
        base = cast(weight).reshape(-1, 2, self.group // 2, *weight.shape[1:])  # groups, halves, a half's outputs
        first, second = base.unbind(1)
        places = (*base.shape[:3], *(1 for _ in weight.shape[1:]))
        return base * (straight.reshape(places) - 1) + torch.stack((-second, first), 1) * crossed.reshape(places)

    def forms(self, shape: torch.Size, cast: Cast, original: Callable[[], Tensor]) -> tuple[Form, ...]:
        """Return R − I for the outputs."""
        straight, crossed = (numbers.reshape(-1, 2, self.group // 2) for numbers in self._numbers(cast))
        return (Map("output", by_pairs, (straight - 1, crossed)),)

    def _numbers(self, cast: Cast) -> tuple[Tensor, Tensor]:
        """Return what each output is multiplied by, and what the other of its pair is."""
        theta, alpha = cast(self.theta), cast(self.alpha_of_each)
        return self._in_place(alpha * theta.cos(), 0), self._in_place(alpha * theta.sin(), 1)

    def _in_place(self, numbers: Tensor, part: int) -> Tensor:
        """Return a number for each output; `part`: which half of those of a group, where there are two for each."""
        if self.variant == "road_1":  # both halves of a group have the same
            return numbers.reshape(-1, 1, self.group // 2).expand(-1, 2, -1)
        return numbers.reshape(-1, 2, self.group)[:, part] if self.variant == "road_4" else numbers


def by_pairs(values: Tensor, straight: Tensor, crossed: Tensor) -> Tensor:
    """Return the turned pairs of each vector less the vector; both numbers (groups, 2, half of a group)."""
    pairs = values.reshape(*values.shape[:-1], *straight.shape)
    first, second = pairs.unbind(-2)
    turned: Tensor = pairs * straight + torch.stack((-second, first), -2) * crossed
    return turned.flatten(-3)


def build(group: Group) -> list[Pairs]:
    """Return the adapters of the weight and of the bias; ValueError says what is missing or contradictory."""
    theta, alpha = group.need("theta", "alpha_of_each")
    if theta.ndim != 1 or theta.shape != alpha.shape or theta.numel() == 0:
        raise ValueError(f"the angles and their scales are no two vectors of one length: {group.shapes()}")
    if "variant" not in group.options:
        raise ValueError("only the adapter_config.json, which is not beside it, tells which outputs are pairs")
    variant, size = group.options["variant"], group.options["group_size"]
    angles, outputs = _ANGLES[variant]
    count = theta.numel() * outputs // angles
    if size % 2 or count % size:
        raise ValueError(f"{count} outputs make no pairs in groups of {size}: {group.shapes()}")
    weight = Pairs(theta, alpha, variant, size, count, group.keys)
    return [weight, Pairs(theta, alpha, variant, size, count, (), "bias")]


ALGORITHM = Algorithm("road", ENDINGS["road"], build, shared=())
