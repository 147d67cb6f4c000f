"""GLoRA as PEFT stores it: Δ(W₀) = W₀∘A + B and Δ(b₀) = b₀∘D + E + W₀·C, each of A … E a path of its own.

Chavan et al. 2023, arXiv:2306.07967. A path is a product Xd·Xu, a vector over the outputs, a number, or nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from lora_runtime.adapters.base import Algorithm, Cast, Dense, Group
from lora_runtime.adapters.forms import Factors, Form, Map, multiply
from lora_runtime.key_endings import ENDINGS

__all__ = ["ALGORITHM", "BiasPaths", "WeightPaths", "build"]

_PATHS = "ABCDE"
_PARTS = ("Xd", "Xu", "X", "zeros")

Path = tuple[Tensor, ...]  # the factors of a product, a single tensor, or nothing


def _sum_of(base: Tensor, times: Path, plus: Path, cast: Callable[[Tensor], Tensor]) -> Tensor:
    """Return base ∘ times + plus, in the shape of `base`."""
    return base * _value(times, base, cast) + _value(plus, base, cast)


def _value(path: Path, base: Tensor, cast: Callable[[Tensor], Tensor]) -> Tensor:
    if not path:
        return base.new_zeros(())
    return cast(path[0]) @ cast(path[1]) if len(path) == 2 else cast(path[0])


@dataclass(frozen=True, eq=False)
class WeightPaths(Dense):
    """The paths of the weight."""

    algorithm: ClassVar[str] = "glora"
    base_dependent: ClassVar[bool] = True

    times: Path  # A
    plus: Path  # B
    inputs: int | None  # of the layer, as C tells, which is applied with the bias
    keys: tuple[str, ...]
    rank: int

    def misfit(self, shape: torch.Size) -> str | None:
        """Return None where all paths are those of a matrix of that shape."""
        for path in (self.times, self.plus):
            made_for = (path[0].shape[0], path[-1].shape[1]) if len(path) == 2 else path[0].shape if path else ()
            # A vector is (out, 1) and a number (1,).
            fits = tuple(shape) == made_for if len(path) == 2 else len(made_for) < 2 or shape[:1] == made_for[:1]
            if len(shape) != 2 or not fits:
                return f"made for {tuple(made_for)}, the weight is {tuple(shape)}"
        if self.inputs is not None and shape[1] != self.inputs:
            return f"made for {self.inputs} inputs, the weight is {tuple(shape)}"
        return None

    def change(self, weight: Tensor, cast: Callable[[Tensor], Tensor]) -> Tensor:
        """Return W₀∘A + B."""
        return _sum_of(cast(weight), self.times, self.plus, cast)

    def forms(self, shape: torch.Size, cast: Cast, original: Callable[[], Tensor]) -> tuple[Form, ...] | None:
        """Return a scale of the outputs and two factors; None where A is a product, element by element."""
        if len(self.times) == 2:
            return None
        made: list[Form] = []
        if self.times:
            made.append(Map("output", multiply, (cast(self.times[0]).flatten().expand(shape[0]),)))
        if len(self.plus) == 2:
            made.append(Factors(cast(self.plus[0]), cast(self.plus[1]), 1.0))
        elif self.plus:  # one number for all inputs of an output
            column = cast(self.plus[0]).reshape(-1, 1).expand(shape[0], 1)
            made.append(Factors(column, column.new_ones(1, shape[1]), 1.0))
        return tuple(made)


@dataclass(frozen=True, eq=False)
class BiasPaths(Dense):
    """The paths of the bias, one of which needs the weight."""

    algorithm: ClassVar[str] = "glora"
    base_dependent: ClassVar[bool] = True

    times: Path  # D
    plus: Path  # E
    mixed: Path  # C
    keys: tuple[str, ...]
    weight: Tensor | None = None  # W₀ (out, in), once `given` it
    parameter: str = "bias"

    @property
    def needs_weight(self) -> bool:  # type: ignore[override]
        """Return whether there is a C."""
        return bool(self.mixed)

    def given(self, originals: tuple[Tensor, ...]) -> BiasPaths:
        """Return this adapter with the layer's W₀."""
        return replace(self, weight=originals[0])

    def misfit(self, shape: torch.Size) -> str | None:
        """Return None where the vectors have as many elements as the bias."""
        lengths = {path[0].numel() for path in (self.times, self.plus) if path} - {1}
        if len(shape) == 1 and lengths <= {shape[0]}:
            return None
        return f"made for {', '.join(map(str, sorted(lengths)))} outputs, the bias is {tuple(shape)}"

    def change(self, weight: Tensor, cast: Callable[[Tensor], Tensor]) -> Tensor:
        """Return b₀∘D + E + W₀·C."""
        base = cast(weight)
        total = _sum_of(base, self.times, self.plus, cast)
        if not self.mixed:
            return total
        assert self.weight is not None, "not given W₀"
        return total + (cast(self.weight) @ _value(self.mixed, base, cast)).reshape(base.shape)


def build(group: Group) -> list[WeightPaths | BiasPaths]:
    """Return the adapter of the weight and, where a path changes it, that of the bias; ValueError: what is wrong."""
    paths = {letter: _path(group, letter) for letter in _PATHS}
    a, b, c, d, e = paths.values()
    vectors = [path[0] for path in (d, e) if path]
    if any(len(path) == 2 for path in (d, e)) or any(vector.ndim != 1 for vector in vectors):
        raise ValueError(f"the paths D and E are no vectors: {group.shapes()}")
    if c and (c[-1].ndim != 2 or c[-1].shape[1] != 1):
        raise ValueError(f"the path C is no column: {group.shapes()}")
    if any(len(path) == 1 and path[0].ndim == 2 and path[0].shape[1] != 1 for path in (a, b)):
        raise ValueError(f"the paths A and B are neither products, columns nor numbers: {group.shapes()}")
    of_the_bias = [role for role in group.tensors if role[0] in "CDE" and not role.endswith("zeros")]
    apart = tuple(group.key_of[role] for role in of_the_bias)
    rank = max(int(path[0].shape[1]) if len(path) == 2 else 0 for path in (a, b))
    keys = tuple(key for key in group.keys if key not in apart)
    weight = WeightPaths(a, b, int(c[0].shape[0]) if c else None, keys, rank)
    return [weight, BiasPaths(d, e, c, apart)] if apart else [weight]


def _path(group: Group, letter: str) -> Path:
    """Return one path; ValueError where its tensors are not those of one."""
    found = {part: group.tensors[f"{letter}.{part}"] for part in _PARTS if f"{letter}.{part}" in group.tensors}
    if found.keys() == {"zeros"}:
        if not found["zeros"].is_meta and bool(found["zeros"].any()) and found["zeros"].numel() > 1:
            raise ValueError(f"the path {letter} is said to be zero and is not: {group.shapes()}")
        return ()
    if found.keys() == {"X"} and found["X"].numel() and found["X"].ndim in (1, 2):
        return (found["X"],)
    if found.keys() == {"Xd", "Xu"}:
        down, up = found["Xd"], found["Xu"]
        if down.ndim == up.ndim == 2 and down.shape[1] == up.shape[0] and down.numel() and up.numel():
            return down, up
    raise ValueError(f"the path {letter} is neither a product, a vector, a number nor zero: {group.shapes()}")


ALGORITHM = Algorithm(
    "glora of PEFT",
    ENDINGS["glora of PEFT"],
    build,
    shared=(),
)
