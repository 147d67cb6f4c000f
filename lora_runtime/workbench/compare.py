"""compare: how two LoRAs meet, block by block: norms, angles, shared directions, and what they do together.

All of it comes from factors: ⟨Δ₁, Δ₂⟩ = Σ (U₁ᵀU₂)∘(D₁D₂ᵀ), and the subspaces from orthonormal bases of them.
"""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lora_runtime.errors import LoraFileError
from lora_runtime.requests import Request
from lora_runtime.workbench.base_model import BaseModel, open_model
from lora_runtime.workbench.changes import Change
from lora_runtime.workbench.kept import block_of_name, in_order
from lora_runtime.workbench.low_rank import Product, Spectrum, concatenated, spectrum_of, taken_apart
from lora_runtime.workbench.merge import matched_modules
from lora_runtime.workbench.progress import steps
from lora_runtime.workbench.sources import Source, read_sources

__all__ = ["Compared", "Meeting", "compare"]

_FIGHT = -0.3  # a cosine from which two files take from each other what a person would see
_ALIKE = 0.8


@dataclass(frozen=True)
class Meeting:
    """How two files meet in one block, or in all.

    `norms`: ‖Δ‖ of each at its strength, in the modules that it has there; `together`: ‖Δ₁ + Δ₂‖. Of the modules that
    both have: `cosine` of the angle between the changes, −1 to 1; `outputs` and `inputs`: how much of the lesser
    subspace of outputs (inputs) lies in the other, 0 to 1; `conflicts`: the share of elements whose signs differ;
    None where they have none in common. `ranks`: the effective rank of each, exp of the entropy of σ²/Σσ², the mean of
    its modules. `base`: ‖W₀‖ of the modules, where a model is given.
    """

    modules: tuple[int, int, int]  # of the first, of the second, of both
    norms: tuple[float, float]
    together: float
    cosine: float | None
    outputs: float | None
    inputs: float | None
    conflicts: float | None
    ranks: tuple[float, float]
    base: float | None = None


@dataclass(frozen=True)
class Compared:
    """What `compare` found: by block and in all, with what a person may want to do about it in words."""

    names: tuple[str, str]
    total: Meeting
    blocks: Mapping[str, Meeting]
    suggestions: tuple[str, ...]


def compare(
    first: Source,
    second: Source,
    *,
    model: str | os.PathLike[str] | None = None,
    loras: Sequence[str | os.PathLike[str]] | None = None,
    progress: bool = False,
) -> Compared:
    """Return how two LoRAs meet. Each is a file with its strength ("ink.safetensors:0.7"), a tag, or a Request.

    `model`: a folder of diffusers or a checkpoint, for norms beside those of the weights, for names of two kinds, and
    for what depends on its weights. Raises LoraFileError where a file or the model cannot be read or is needed.
    """
    requests = read_sources([first, second], loras)
    if len(requests) != 2:
        raise LoraFileError(f"{len(requests)} files: two are compared; give one file or tag for each")
    base = None if model is None else open_model(model)
    found: dict[str, list[_Module]] = defaultdict(list)
    modules = [m for m in matched_modules(requests, base) if m.parts[0].change.parameter == "weight"]
    for module in steps(modules, "compare", show=progress):
        sides: list[Product | None] = [None, None]
        for part in module.parts:
            index = next(i for i, request in enumerate(requests) if request is part.request)
            if part.strength != 0 and (product := _product_of(part.change, part.request, part.strength)) is not None:
                sides[index] = product
        if any(side is not None for side in sides):
            change = module.parts[0].change
            found[block_of_name(change.stem)].append(_Module(change.stem, sides[0], sides[1], _norm(base, change)))
    names = requests[0].lora.name, requests[1].lora.name
    if not found:
        raise LoraFileError(f"{names[0]} and {names[1]}: neither changes a matrix at these strengths")
    blocks = {block: _meeting(found[block]) for block in sorted(found, key=in_order)}
    total = _meeting([module for each in found.values() for module in each])
    return Compared(names, total, blocks, tuple(_suggestions(names, blocks, total)))


@dataclass(frozen=True, eq=False)
class _Module:
    stem: str
    first: Product | None
    second: Product | None
    base: float | None


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


def _norm(model: BaseModel | None, change: Change) -> float | None:
    weight = None if model is None else model.read(change.stem)
    return None if weight is None else float(torch.linalg.vector_norm(weight.double()))


def _meeting(modules: Sequence[_Module]) -> Meeting:
    squares, inner, sides = [0.0, 0.0], 0.0, ([0.0, 0.0], [0.0, 0.0])
    shared = [0.0, 0.0]  # squares in the modules that both have
    effective: tuple[list[float], list[float]] = ([], [])
    counts, signs, elements = [0, 0, 0], 0, 0
    for module in modules:
        spectra: list[Spectrum | None] = []
        for index, product in enumerate((module.first, module.second)):
            spectrum = None if product is None else spectrum_of(product)
            spectra.append(spectrum)
            if spectrum is not None:
                counts[index] += 1
                squares[index] += spectrum.energy
                effective[index].append(_effective_rank(spectrum.values))
        if module.first is None or module.second is None or spectra[0] is None or spectra[1] is None:
            continue
        counts[2] += 1
        a, b = module.first, module.second
        inner += float(((a.up.mT @ b.up) * (a.down @ b.down.mT)).sum())
        shared = [shared[0] + spectra[0].energy, shared[1] + spectra[1].energy]
        for side, left, right in zip(sides, (a.up, a.down.mT), (b.up, b.down.mT), strict=True):
            overlap, least = _overlap(left, right)
            side[0] += overlap
            side[1] += least
        one, other = a.up @ a.down, b.up @ b.down
        signs += int((one.sign() * other.sign() < 0).sum())
        elements += one.numel()
    together = math.sqrt(max(0.0, squares[0] + squares[1] + 2 * inner))
    lengths = math.sqrt(shared[0] * shared[1])
    has_both = counts[2] > 0 and lengths > 0
    bases = [module.base for module in modules if module.base is not None]
    return Meeting(
        (counts[0], counts[1], counts[2]),
        (math.sqrt(squares[0]), math.sqrt(squares[1])),
        together,
        inner / lengths if has_both else None,
        sides[0][0] / sides[0][1] if has_both else None,
        sides[1][0] / sides[1][1] if has_both else None,
        signs / elements if has_both else None,
        (_mean(effective[0]), _mean(effective[1])),
        math.sqrt(sum(base * base for base in bases)) if bases else None,
    )


def _effective_rank(values: Tensor) -> float:
    """Return exp of the entropy of σ²/Σσ² (Roy and Vetterli 2007): 1 for one direction, k for k equal ones."""
    shares = values.square() / values.square().sum().clamp(min=torch.finfo(values.dtype).tiny)
    return float(torch.exp(-(shares * shares.clamp(min=torch.finfo(values.dtype).tiny).log()).sum()))


def _overlap(left: Tensor, right: Tensor) -> tuple[float, int]:
    """Return ‖PᵀQ‖² of orthonormal bases of two column spaces, and the most that it can be: the lesser dimension."""
    p, q = _basis(left), _basis(right)
    return float((p.mT @ q).square().sum()), min(p.shape[1], q.shape[1])


def _basis(columns: Tensor) -> Tensor:
    left, values, _ = torch.linalg.svd(columns, full_matrices=False)
    floor = values[:1] * max(columns.shape) * torch.finfo(columns.dtype).eps
    found: Tensor = left[:, values > floor]
    return found


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers) if numbers else 0.0


def _suggestions(names: tuple[str, str], blocks: Mapping[str, Meeting], total: Meeting) -> list[str]:
    """Return in words what stands out, and strengths that keep the sum at the norm of the stronger alone."""
    first, second = names
    said = []
    fights = {block: m.cosine for block, m in blocks.items() if m.cosine is not None and m.cosine <= _FIGHT}
    for block, cosine in sorted(fights.items(), key=lambda item: item[1]):
        weaker = second if blocks[block].norms[0] >= blocks[block].norms[1] else first
        said.append(f"{first} and {second} fight in {block}: cosine {cosine:.2f}; try {weaker} with {block}=0.5")
    if total.cosine is not None and total.cosine >= _ALIKE:
        said.append(f"{first} and {second} do nearly the same: cosine {total.cosine:.2f}; one of them may be enough")
    strongest = max(total.norms)
    if total.together > strongest > 0:
        factor = strongest / total.together
        said.append(f"at {factor:.2f} times their strengths the two together have the norm of the stronger alone")
    return said
