"""OFT and BOFT: W′ = rescale · R · W₀, where R turns the outputs of a layer and keeps the angles between them.

OFT: Qiu et al. 2023, arXiv:2306.07280. BOFT: Liu et al. 2023, arXiv:2311.06243. As kohya's trainer and LyCORIS
(arXiv:2309.14859, "diag-oft" and "boft") store them: what is learnt is the upper part of a skew matrix Q, and
R = (I + Q)(I − Q)⁻¹ (Cayley). PEFT's `oft_R` turns the inputs: `peft_oft.py`.

A strength s is that of the sum of all adapters, W₀ + s·(W′ − W₀).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lora_runtime.adapters.base import Algorithm, Cast, Dense, Group
from lora_runtime.adapters.forms import Form, Map, by_blocks, multiply
from lora_runtime.key_endings import ENDINGS

__all__ = ["ALGORITHM", "Butterfly", "Rotation", "Rotations", "build", "butterfly", "cayley", "rotate"]


def cayley(blocks: Tensor, limit: float | None) -> Tensor:
    """Return R = (I + Q)(I − Q)⁻¹ for each of `blocks` (…, b, b), where Q is a block minus its transpose.

    `limit`: what the norm of all Q together is cut to; None for none.
    """
    skew = blocks - blocks.mT
    if limit is not None:
        norm = torch.linalg.vector_norm(skew).clamp(min=torch.finfo(skew.dtype).tiny)
        skew = skew * (limit / norm).clamp(max=1.0)
    identity = torch.eye(blocks.shape[-1], dtype=blocks.dtype, device=blocks.device)
    # Both commute, so the inverse may stand on either side.
    turns: Tensor = torch.linalg.solve(identity - skew, identity + skew)
    return turns


def rotate(turns: Tensor, weight: Tensor) -> Tensor:
    """Return Rᵀ·W₀ by blocks of rows: turns (n, b, b) on a weight (n·b, …)."""
    rows = weight.reshape(turns.shape[0], turns.shape[1], -1)
    return (turns.mT @ rows).reshape(weight.shape)


def butterfly(turns: Tensor, weight: Tensor) -> Tensor:
    """Return the product of m butterfly stages with W₀: turns (m, n, b, b) on a weight (n·b, …).

    Stage i turns rows that lie 2ⁱ·b/2 apart: it mixes within stretches of 2ⁱ·b rows.
    """
    stages, count, size, _ = turns.shape
    rows = weight.reshape(weight.shape[0], -1)
    columns = rows.shape[1]
    for stage in range(stages):
        apart = 2**stage * (size // 2)
        paired = rows.reshape(-1, 2, apart, columns).transpose(1, 2).reshape(count, size, columns)
        turned = turns[stage] @ paired
        rows = turned.reshape(-1, apart, 2, columns).transpose(1, 2).reshape(-1, columns)
    return rows.reshape(weight.shape)


def by_stages(values: Tensor, changes: Tensor) -> Tensor:
    """Return (Rₘ⋯R₁ − I) @ each vector from the changes R − I of each stage, (m, n, b, b), placed as in `butterfly`.

    The sum of the changes is kept apart from the vector, which is larger and would cost its digits.
    """
    change, lead = torch.zeros_like(values), values.shape[:-1]
    for stage, blocks in enumerate(changes):
        apart = 2**stage * (blocks.shape[-1] // 2)
        paired = (values + change).reshape(*lead, -1, 2, apart).transpose(-1, -2)
        turned = by_blocks(paired.flatten(-3), blocks).reshape(*lead, -1, apart, 2)
        change = change + turned.transpose(-1, -2).flatten(-3)
    return change


@dataclass(frozen=True, eq=False)
class Rotation(Dense):
    """Rotations of blocks of neighbouring outputs."""

    algorithm: ClassVar[str] = "oft"
    base_dependent: ClassVar[bool] = True

    blocks: Tensor  # (n, b, b); for BOFT (m, n, b, b)
    learnt: bool  # whether the blocks make R by Cayley's formula; False: they are R (old LyCORIS)
    rescale: Tensor | None  # (out, 1…)
    keys: tuple[str, ...]
    alpha: float | None  # of the norm of Q, by output; None and 0 for none

    @property
    def outputs(self) -> int:
        """Return the number of outputs that the blocks cover."""
        return int(self.blocks.shape[-3] * self.blocks.shape[-1])

    def misfit(self, shape: torch.Size) -> str | None:
        """Return None where the weight has as many outputs."""
        if len(shape) >= 2 and shape[0] == self.outputs:
            return None
        made_for = " × ".join(str(extent) for extent in self.blocks.shape[-3:-1])
        return f"made for {made_for} outputs, the weight is {tuple(shape)}"

    def change(self, weight: Tensor, cast: Callable[[Tensor], Tensor]) -> Tensor:
        """Return rescale · R · W₀ − W₀."""
        base = cast(weight)
        turned = self.turn(self._turns(cast), base)
        if self.rescale is not None:
            turned = turned * cast(self.rescale).reshape(-1, *(1 for _ in weight.shape[1:]))
        return turned - base

    def turn(self, turns: Tensor, weight: Tensor) -> Tensor:
        """Return R · W₀."""
        return rotate(turns, weight)

    def forms(self, shape: torch.Size, cast: Cast, original: Callable[[], Tensor]) -> tuple[Form, ...]:
        """Return R − I for the outputs."""
        turns = self._turns(cast).mT
        identity = torch.eye(turns.shape[-1], dtype=turns.dtype, device=turns.device)
        if self.rescale is not None:
            turns = cast(self.rescale).reshape(turns.shape[0], -1, 1) * turns
        return (Map("output", by_blocks, (turns - identity,)),)

    def _turns(self, cast: Cast) -> Tensor:
        """Return the rotations, (n, b, b) or (m, n, b, b)."""
        blocks = cast(self.blocks)
        if not self.learnt:
            return blocks
        limit = self.alpha * self.outputs if self.alpha is not None and self.alpha > 0 else None
        return cayley(blocks, limit)


class Butterfly(Rotation):
    """Rotations in stages, which mix ever more distant outputs."""

    algorithm: ClassVar[str] = "boft"

    def turn(self, turns: Tensor, weight: Tensor) -> Tensor:
        """Return the product of all stages with W₀."""
        return butterfly(turns, weight)

    def forms(self, shape: torch.Size, cast: Cast, original: Callable[[], Tensor]) -> tuple[Form, ...]:
        """Return all stages for the outputs, and what the rescale adds."""
        turns = self._turns(cast)
        changes = turns - torch.eye(turns.shape[-1], dtype=turns.dtype, device=turns.device)
        if self.rescale is None:
            return (Map("output", by_stages, (changes,)),)
        rescale = cast(self.rescale).flatten()
        return Map("output", by_stages, (changes,), by_output=rescale), Map("output", multiply, (rescale - 1,))


@dataclass(frozen=True, eq=False)
class Rotations(Dense):
    """Rotations of the runs of outputs that a fused layer has one after the other, such as q, k and v."""

    algorithm: ClassVar[str] = "oft"
    base_dependent: ClassVar[bool] = True

    parts: tuple[Rotation, ...]
    keys: tuple[str, ...]
    alpha: float | None

    def misfit(self, shape: torch.Size) -> str | None:
        """Return None where the weight has as many outputs as all runs together."""
        outputs = [part.outputs for part in self.parts]
        if len(shape) >= 2 and shape[0] == sum(outputs):
            return None
        return f"made for {' + '.join(map(str, outputs))} outputs, the weight is {tuple(shape)}"

    def change(self, weight: Tensor, cast: Callable[[Tensor], Tensor]) -> Tensor:
        """Return R · W₀ − W₀, run by run."""
        runs = torch.split(weight, [part.outputs for part in self.parts])
        return torch.cat([part.change(run, cast) for part, run in zip(self.parts, runs, strict=True)])

    def forms(self, shape: torch.Size, cast: Cast, original: Callable[[], Tensor]) -> tuple[Form, ...]:
        """Return R − I for the outputs, run by run."""
        changes: list[Tensor] = []
        for part in self.parts:
            (turn,) = part.forms(torch.Size((part.outputs, *shape[1:])), cast, original)
            assert isinstance(turn, Map)
            changes += turn.tensors
        return (Map("output", by_runs, tuple(changes)),)


def by_runs(values: Tensor, *changes: Tensor) -> Tensor:
    """Return the vectors with each run of channels multiplied by its blocks, (n, b, b) each."""
    runs = torch.split(values, [int(blocks.shape[0] * blocks.shape[1]) for blocks in changes], -1)
    return torch.cat([by_blocks(run, blocks) for run, blocks in zip(runs, changes, strict=True)], -1)


def build(group: Group) -> list[Rotation | Rotations]:
    """Return the adapter of one module, an OFT or, where the blocks have four dimensions, a BOFT."""
    if not _RUNS.isdisjoint(group.tensors):
        return [_build_runs(group)]
    blocks, diag, rescale = (group.tensors.get(role) for role in ("blocks", "diag", "rescale"))
    if blocks is not None and diag is not None:
        raise ValueError("both oft_blocks and oft_diag on one module")
    learnt = blocks is not None
    blocks = diag if blocks is None else blocks
    if blocks is None:
        (blocks,) = group.need("blocks")
    kind = Butterfly if blocks.ndim == 4 and learnt else Rotation
    if blocks.ndim != (4 if kind is Butterfly else 3) or blocks.shape[-1] != blocks.shape[-2]:
        raise ValueError(f"the blocks are not square: {group.shapes()}")
    if blocks.numel() == 0:
        raise ValueError(f"the blocks are empty: {group.shapes()}")
    made = kind(blocks, learnt, rescale, group.keys, group.alpha)
    if rescale is not None and rescale.numel() != made.outputs:
        raise ValueError(f"the rescale has another number of outputs: {group.shapes()}")
    if kind is Butterfly and (blocks.shape[-1] % 2 or made.outputs % (2 ** (blocks.shape[0] - 1) * blocks.shape[-1])):
        raise ValueError(f"the blocks make no butterfly of that many stages: {group.shapes()}")
    return [made]


def _build_runs(group: Group) -> Rotations:
    """Return the adapter of a module with blocks for each run of its outputs, as kohya's trainer writes for Flux."""
    runs = [f"blocks.{number}" for number in range(len(group.tensors))]
    if group.tensors.keys() != set(runs):
        raise ValueError(f"the runs of outputs are not those from 0 on: {group.shapes()}")
    parts = []
    for blocks in group.need(*runs):
        if blocks.ndim != 3 or blocks.shape[1] != blocks.shape[2] or blocks.numel() == 0:
            raise ValueError(f"the blocks are not square: {group.shapes()}")
        parts.append(Rotation(blocks, True, None, (), group.alpha))
    return Rotations(tuple(parts), group.keys, group.alpha)


_RUNS = {f"blocks.{number}" for number in range(4)}  # q, k, v and the MLP: no layer has more in one
ALGORITHM = Algorithm(
    "oft",
    ENDINGS["oft"],
    build,
    shared=("alpha",),
)
