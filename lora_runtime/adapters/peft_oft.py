"""OFT and BOFT as PEFT stores them: W′ = s · W₀ · Rᵀ, where R turns the inputs of a layer block by block.

OFT: Qiu et al. 2023, arXiv:2306.07280, and Qiu et al. 2025, arXiv:2506.19847 ("OFTv2"): what is learnt is the part
above the diagonal of a skew matrix Q for each block. By the configuration, R = (I − Q)(I + Q)⁻¹ or, in the default
form, the first powers of a Neumann series of (I + Q)(I − Q)⁻¹, which turns the other way. Of a kernel the inputs are
(in·k…).
BOFT: Liu et al. 2023, arXiv:2311.06243: a product of stages, R = Rₘ⋯R₁, with a scale s for each output.

OneTrainer's "OFT_2" has the same keys and no configuration: it is PEFT's default form, but for a convolution it
multiplies by R and not by Rᵀ.

A strength s is that of the sum of all adapters, W₀ + s·(W′ − W₀).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lora_runtime.adapters.base import Algorithm, Cast, Dense, Group
from lora_runtime.adapters.forms import Form, Map, by_blocks, multiply
from lora_runtime.adapters.oft import cayley
from lora_runtime.key_endings import ENDINGS

__all__ = ["BOFT", "OFT", "Cayley", "InputButterfly", "InputRotation", "build_boft", "build_oft", "neumann"]


@dataclass(frozen=True)
class Cayley:
    """How R is made of Q: the options of PEFT's OFTConfig, with its defaults."""

    terms: int | None = 5  # of the Neumann series; None: the exact form
    last_halved: bool = True  # whether the last power counts once and not twice, as since PEFT 0.18
    limit: float | None = None  # what the norm of a block's Q is cut to (COFT), for a single block; None for none

    def turns(self, upper: Tensor) -> Tensor:
        """Return R (n, b, b) from the parts above the diagonals, (n, b, b) with zeros elsewhere."""
        if self.limit is not None:
            limit = self.limit / math.sqrt(upper.shape[0])
            norms = torch.linalg.vector_norm(upper - upper.mT, dim=(1, 2), keepdim=True)
            upper = upper * (limit / norms.clamp(min=torch.finfo(upper.dtype).tiny)).clamp(max=1.0)
        if self.terms is None:
            return cayley(-upper, None)
        return neumann(upper - upper.mT, self.terms, self.last_halved)


def neumann(skew: Tensor, terms: int, last_halved: bool) -> Tensor:
    """Return I + 2Q + 2Q² + … for `skew` Q (n, b, b), up to the power `terms` − 1.

    With `last_halved` the last power counts once, but for a power of 1; three terms are then four.
    """
    last = max(terms, 4) - 1 if last_halved and terms > 2 else terms - 1
    series = torch.eye(skew.shape[-1], dtype=skew.dtype, device=skew.device).expand_as(skew)
    power = skew
    for exponent in range(1, last + 1):
        series = series + (power if last_halved and exponent == last > 1 else 2 * power)
        power = power @ skew
    return series


def _turn(turns: Tensor, rows: Tensor) -> Tensor:
    """Return blockdiag(turns) · rows from turns (n, b, b) and rows (n·b, columns)."""
    return (turns @ rows.reshape(turns.shape[0], turns.shape[1], -1)).reshape(rows.shape)


@dataclass(frozen=True, eq=False)
class InputRotation(Dense):
    """Rotations of blocks of neighbouring inputs."""

    algorithm: ClassVar[str] = "oft"
    base_dependent: ClassVar[bool] = True

    upper: Tensor  # (n, b·(b − 1)/2): row after row of the part above the diagonal
    size: int  # b
    shared: bool  # whether a single block turns all inputs
    form: Cayley
    kernels_turned_back: bool  # whether a convolution is multiplied by R instead of Rᵀ
    keys: tuple[str, ...]

    def misfit(self, shape: torch.Size) -> str | None:
        """Return None where the weight has as many inputs, or with a shared block a multiple of its size."""
        inputs, made_for = math.prod(shape[1:]), int(self.upper.shape[0]) * self.size
        if len(shape) >= 2 and (inputs % self.size == 0 if self.shared else inputs == made_for):
            return None
        count = f"a multiple of {made_for}" if self.shared else str(made_for)
        return f"made for {count} inputs, the weight is {tuple(shape)}"

    def change(self, weight: Tensor, cast: Callable[[Tensor], Tensor]) -> Tensor:
        """Return W₀ · Rᵀ − W₀."""
        base, turns = cast(weight).flatten(1), self._turns(cast, weight.ndim)
        return _turn(turns.expand(base.shape[1] // self.size, -1, -1), base.T).T - base

    def forms(self, shape: torch.Size, cast: Cast, original: Callable[[], Tensor]) -> tuple[Form, ...] | None:
        """Return Rᵀ − I for the inputs; None for a kernel, whose places it turns too."""
        if math.prod(shape[2:]) != 1:
            return None
        turns = self._turns(cast, len(shape)).mT
        identity = torch.eye(self.size, dtype=turns.dtype, device=turns.device)
        return (Map("before", by_blocks, (turns - identity,)),)

    def _turns(self, cast: Cast, dimensions: int) -> Tensor:
        """Return R, (n, b, b), for a weight of so many dimensions."""
        upper = cast(self.upper)
        row, column = torch.triu_indices(self.size, self.size, 1, device=upper.device)
        blocks = upper.new_zeros(upper.shape[0], self.size, self.size)
        blocks[:, row, column] = upper
        turns = self.form.turns(blocks)
        return turns.mT if self.kernels_turned_back and dimensions > 2 else turns


@dataclass(frozen=True, eq=False)
class InputButterfly(Dense):
    """Rotations of the inputs in stages, which mix ever more distant ones, and a scale for each output."""

    algorithm: ClassVar[str] = "boft"
    base_dependent: ClassVar[bool] = True

    blocks: Tensor  # (m, n, b, b): R by Cayley's formula of half a block minus its transpose
    outputs: Tensor  # (out, 1), of a convolution (1, out)
    keys: tuple[str, ...]

    def misfit(self, shape: torch.Size) -> str | None:
        """Return None where the weight has as many inputs and outputs."""
        inputs, outputs = math.prod(self.blocks.shape[1:3]), self.outputs.numel()
        if len(shape) >= 2 and shape[0] == outputs and math.prod(shape[1:]) == inputs:
            return None
        return f"made for {inputs} inputs and {outputs} outputs, the weight is {tuple(shape)}"

    def change(self, weight: Tensor, cast: Callable[[Tensor], Tensor]) -> Tensor:
        """Return s · W₀ · Rᵀ − W₀."""
        base = cast(weight).flatten(1)
        turned = _butterfly(cayley(cast(self.blocks) * -0.5, None), base.T).T
        return turned * cast(self.outputs).reshape(-1, 1) - base

    def forms(self, shape: torch.Size, cast: Cast, original: Callable[[], Tensor]) -> tuple[Form, ...] | None:
        """Return Rᵀ − I for the inputs with the scale of the outputs, and what that scale adds; None for a kernel."""
        if math.prod(shape[2:]) != 1:
            return None
        turns, scale = cayley(cast(self.blocks) * -0.5, None), cast(self.outputs).flatten()
        changes = turns.mT - torch.eye(turns.shape[-1], dtype=turns.dtype, device=turns.device)
        before = Map("before", by_turned_stages, (changes,), by_output=scale)
        return before, Map("output", multiply, (scale - 1,))


def _butterfly(turns: Tensor, rows: Tensor) -> Tensor:
    """Return Rₘ⋯R₁ · rows from turns (m, n, b, b) and rows (n·b, columns).

    A block of stage i (from 0) turns two runs of b/2 rows that lie 2ⁱ·b/2 apart.
    """
    size, columns = turns.shape[-1], rows.shape[1]
    rows = _turn(turns[0], rows)
    for stage in range(1, turns.shape[0]):
        runs = rows.reshape(-1, 2, 2**stage, size // 2, columns).transpose(1, 2)
        turned = _turn(turns[stage], runs.reshape(-1, columns))
        rows = turned.reshape(-1, 2**stage, 2, size // 2, columns).transpose(1, 2).reshape(-1, columns)
    return rows


def by_turned_stages(values: Tensor, changes: Tensor) -> Tensor:
    """Return (R₁ᵀ⋯Rₘᵀ − I) @ each vector from the changes Rᵀ − I of each stage, (m, n, b, b)."""
    change, lead, half = torch.zeros_like(values), values.shape[:-1], changes.shape[-1] // 2
    for stage in range(changes.shape[0] - 1, 0, -1):
        runs = (values + change).reshape(*lead, -1, 2, 2**stage, half).transpose(-2, -3)
        turned = by_blocks(runs.flatten(-4), changes[stage]).reshape(*lead, -1, 2**stage, 2, half)
        change = change + turned.transpose(-2, -3).flatten(-4)
    return change + by_blocks(values + change, changes[0])


def build_oft(group: Group) -> list[InputRotation]:
    """Return the adapter of one module; ValueError says what is contradictory."""
    # W₀ · R of the table of an embedding is the turn by −Q.
    upper = -group.tensors["embedding"] if "embedding" in group.tensors else group.need("upper")[0]
    if upper.ndim != 2 or upper.numel() == 0:
        raise ValueError(f"the rotations are no rows: {group.shapes()}")
    size = (1 + math.isqrt(1 + 8 * int(upper.shape[1]))) // 2
    if size * (size - 1) // 2 != upper.shape[1]:
        raise ValueError(f"no block has that many numbers above its diagonal: {group.shapes()}")
    options = group.options
    shared = bool(options.get("block_share", upper.shape[0] == 1))
    if shared and upper.shape[0] != 1:
        raise ValueError(f"several blocks, and its adapter_config.json says that one is shared: {group.shapes()}")
    return [InputRotation(upper, size, shared, _form(options), not options, group.keys)]


def _form(options: Mapping[str, Any]) -> Cayley:
    """Return how R is made of Q; without options, the form that is PEFT's default."""
    if "use_cayley_neumann" not in options:
        return Cayley()
    terms = options["num_cayley_neumann_terms"] if options["use_cayley_neumann"] else None
    return Cayley(terms, options["last_halved"], options["eps"] if options["coft"] else None)


def build_boft(group: Group) -> list[InputButterfly]:
    """Return the adapter of one module; ValueError says what is missing or contradictory."""
    blocks, outputs = group.need("blocks", "outputs")
    if blocks.ndim != 4 or blocks.shape[2] != blocks.shape[3] or blocks.numel() == 0:
        raise ValueError(f"the blocks are not square: {group.shapes()}")
    if outputs.numel() == 0 or max(outputs.shape, default=1) != outputs.numel():
        raise ValueError(f"the scale is no vector: {group.shapes()}")
    stages, count, size, _ = blocks.shape
    if stages > 1 and (size % 2 or count % 2 ** (stages - 1)):
        raise ValueError(f"the blocks make no butterfly of that many stages: {group.shapes()}")
    return [InputButterfly(blocks, outputs, group.keys)]


OFT = Algorithm(
    "oft of PEFT",
    ENDINGS["oft of PEFT"],
    build_oft,
    shared=(),
)
BOFT = Algorithm("boft of PEFT", ENDINGS["boft of PEFT"], build_boft, shared=())
