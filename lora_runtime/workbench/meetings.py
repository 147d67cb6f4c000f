"""How two changes meet: figures of one module, summed over blocks, and what they say in words.

All of it comes from factors: ⟨Δ₁, Δ₂⟩ = Σ (U₁ᵀU₂)∘(D₁D₂ᵀ), and the subspaces from orthonormal bases of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from string import ascii_uppercase, digits

import torch
from torch import Tensor

from lora_runtime.requests import Request
from lora_runtime.workbench.base_model import Model
from lora_runtime.workbench.changes import Change
from lora_runtime.workbench.kept import OTHER, block_of_name
from lora_runtime.workbench.low_rank import Product, Spectrum, concatenated, significant, spectrum_of, taken_apart
from lora_runtime.workbench.matching import Module

__all__ = ["Met", "Pair", "Side", "balance_of", "fights", "met"]

_FIGHT = -0.3  # a cosine from which two files take from each other what a person would see
_LOSS = 0.3  # what a file may lose to another: as much as two of equal norm at that cosine
_ALIKE = 0.8
_LETTERS = ascii_uppercase


# ---- one module -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Side:
    """What one file changes in a module at its strength: factors, ‖Δ‖², and the effective rank."""

    product: Product
    spectrum: Spectrum
    rank: float

    @property
    def energy(self) -> float:
        """‖Δ‖², the squared Frobenius norm."""
        return self.spectrum.energy

    @cached_property
    def spaces(self) -> tuple[Tensor, Tensor]:
        """Orthonormal columns of its outputs (out, r) and of its inputs (columns, r)."""
        return self.spectrum.spaces(significant(self.spectrum))

    @cached_property
    def signs(self) -> Tensor:
        """The signs of Δ's elements, int8; of float32, in which those next to zero may be the other."""
        return (self.product.up.float() @ self.product.down.float()).sign().char()


@dataclass(frozen=True, eq=False)
class Met:
    """What several files change in one module, None where a file has nothing for it; `base` is ‖W₀‖, of a model."""

    block: str
    sides: tuple[Side | None, ...]
    base: float | None


def met(module: Module, requests: Sequence[Request], model: Model | None) -> Met | None:
    """Return what the files change in a module, in the order of the requests; None where all of it is zero."""
    sides: list[Side | None] = [None] * len(requests)
    for part in module.parts:
        index = next(i for i, request in enumerate(requests) if request is part.request)
        product = _product_of(part.change, part.request, part.strength) if part.strength != 0 else None
        if product is not None:
            spectrum = spectrum_of(product)
            sides[index] = Side(product, spectrum, _effective_rank(spectrum.values))
    if not any(sides):
        return None
    stem = module.parts[0].change.stem
    weight = None if model is None else model.read(stem)
    base = None if weight is None else float(torch.linalg.vector_norm(weight, dtype=torch.float64))
    return Met(block_of_name(stem), tuple(sides), base)


def _product_of(change: Change, request: Request, strength: float) -> Product | None:
    """Return strength · Δ as a product; of a vector there is none."""
    terms = change.terms(request.dyn)
    if terms is not None:
        return concatenated([(strength * scale, product) for scale, product in terms])
    delta = change.dense()
    if delta.ndim < 2 or not bool(delta.any()):
        return None
    return concatenated([(strength, _whole(taken_apart(delta.flatten(1))))])


def _whole(spectrum: Spectrum) -> Product:
    return spectrum.cut(spectrum.values.numel())


def _effective_rank(values: Tensor) -> float:
    """Return exp of the entropy of σ²/Σσ² (Roy and Vetterli 2007): 1 for one direction, k for k equal ones."""
    shares = values.square() / values.square().sum().clamp(min=torch.finfo(values.dtype).tiny)
    return float(torch.exp(-(shares * shares.clamp(min=torch.finfo(values.dtype).tiny).log()).sum()))


# ---- two files ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """Sums over the modules that two files have in common, from which all figures of them follow."""

    modules: int = 0
    inner: float = 0.0  # ⟨Δ₁, Δ₂⟩
    first: float = 0.0  # ‖Δ₁‖²
    second: float = 0.0  # ‖Δ₂‖²
    shared_outputs: float = 0.0  # ‖PᵀQ‖² of orthonormal bases of the outputs
    least_outputs: int = 0  # the most that it could be
    shared_inputs: float = 0.0
    least_inputs: int = 0
    conflicts: int = 0  # elements of other signs
    elements: int = 0
    fighting: int = 0  # modules that fight by themselves

    @classmethod
    def of(cls, one: Side | None, other: Side | None) -> Pair:
        """Return the figures of one module."""
        if one is None or other is None:
            return cls()
        a, b = one.product, other.product
        inner = float(((a.up.mT @ b.up) * (a.down @ b.down.mT)).sum())
        outputs, inputs = (_overlap(p, q) for p, q in zip(one.spaces, other.spaces, strict=True))
        conflicts = int((one.signs * other.signs < 0).sum())
        found = cls(1, inner, one.energy, other.energy, *outputs, *inputs, conflicts, one.signs.numel())
        return replace(found, fighting=int(found.fights))

    def __add__(self, other: Pair) -> Pair:
        return Pair(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    @property
    def cosine(self) -> float | None:
        """The cosine of the angle between the changes, −1 to 1; None where they have no module in common."""
        lengths = math.sqrt(self.first * self.second)
        return self.inner / lengths if lengths > 0 else None

    @property
    def fights(self) -> bool:
        """Whether they take from each other."""
        return self.cosine is not None and self.cosine <= _FIGHT

    @property
    def losses(self) -> tuple[float, float]:
        """What each loses of itself to the other: −⟨Δ₁, Δ₂⟩ by its own ‖Δ‖²; below 0 it gains."""
        return -self.inner / self.first, -self.inner / self.second

    @property
    def outputs(self) -> float | None:
        """How much of the lesser subspace of outputs lies in the other, 0 to 1."""
        return None if self.cosine is None else self.shared_outputs / self.least_outputs

    @property
    def inputs(self) -> float | None:
        """How much of the lesser subspace of inputs lies in the other, 0 to 1."""
        return None if self.cosine is None else self.shared_inputs / self.least_inputs

    @property
    def signs(self) -> float | None:
        """The share of elements whose signs differ."""
        return None if self.cosine is None else self.conflicts / self.elements


def _overlap(p: Tensor, q: Tensor) -> tuple[float, int]:
    """Return ‖PᵀQ‖² of orthonormal bases of two spaces, and the most that it can be: the lesser dimension."""
    return float((p.mT @ q).square().sum()), min(p.shape[1], q.shape[1])


# ---- in words -------------------------------------------------------------------------------------------------------


def fights(names: tuple[str, str], blocks: Mapping[str, Pair]) -> Iterator[str]:
    """Yield what stands out between two files: where they fight, the worst first, and whether they do the same.

    `blocks`: by block, in the order of the model. Neighbours that fight are one. The advice is the ratio of the file
    of lesser norm at which the other loses no more than it would to one of equal norm at the cosine of a fight; where
    the other loses less already, the ratio of the other at which that of lesser norm loses no more.
    """
    for where, pair in sorted(_neighbours(blocks), key=lambda item: item[1].cosine or 0.0):
        losses = pair.losses
        stronger = 0 if pair.first >= pair.second else 1
        other = stronger if losses[stronger] > _LOSS else 1 - stronger
        changed, ratio = 1 - other, _LOSS / losses[other]
        at = f"at {ratio:.2g} of its strength there" if where == OTHER else f"with {where}={ratio:.2g}"
        yield (
            f"{names[0]} and {names[1]} fight in {where}: cosine {pair.cosine:.2f}, which takes {losses[0]:.0%} "
            f"of {names[0]} and {losses[1]:.0%} of {names[1]}; try {names[changed]} {at}, and {names[other]} "
            f"loses {_LOSS:.0%}"
        )
    total = sum(blocks.values(), Pair())
    if total.cosine is not None and total.cosine >= _ALIKE:
        yield f"{names[0]} and {names[1]} do nearly the same: cosine {total.cosine:.2f}; one of them may be enough"


def _neighbours(blocks: Mapping[str, Pair]) -> list[tuple[str, Pair]]:
    """Return the blocks that fight, and those in a row as one, where they fight as one too: "OUT03-05"."""
    runs: list[tuple[list[str], Pair]] = []
    goes_on = False
    for block, pair in blocks.items():
        if not pair.fights:
            goes_on = False
            continue
        joined = runs[-1][1] + pair if goes_on else pair
        if goes_on and joined.fights and _kind(block) is not None and _kind(block) == _kind(runs[-1][0][0]):
            runs[-1] = ([*runs[-1][0], block], joined)
        else:
            runs.append(([block], pair))
        goes_on = True
    return [(run[0] if len(run) == 1 else f"{run[0]}-{run[-1].lstrip(_LETTERS)}", pair) for run, pair in runs]


def _kind(block: str) -> str | None:
    """Return the letters of a numbered block: "OUT"."""
    letters = block.rstrip(digits)
    return letters if letters != block else None


def balance_of(norms: Sequence[float], together: float) -> float:
    """Return the factor, at most 1, for all strengths with which the sum has the norm of the strongest alone."""
    strongest = max(norms)
    return strongest / together if together > strongest > 0 else 1.0
