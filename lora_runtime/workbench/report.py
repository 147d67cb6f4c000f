"""report: what the LoRAs of a prompt do together, block by block, and what to do where they get in each other's way."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from lora_runtime.errors import LoraFileError
from lora_runtime.prompt.strength import Curve
from lora_runtime.requests import Request
from lora_runtime.workbench.base_model import Model, open_model
from lora_runtime.workbench.kept import in_order
from lora_runtime.workbench.matching import Module, matched_modules
from lora_runtime.workbench.meetings import Met, Pair, balance_of, fights, met
from lora_runtime.workbench.progress import steps
from lora_runtime.workbench.sources import Source, idle_of, read_sources

__all__ = ["Between", "Block", "Reported", "report"]


@dataclass(frozen=True)
class Between:
    """How two of the files meet in a block, in the `modules` that both have; None where they have none in common.

    `cosine` of the angle between the changes, −1 to 1; `outputs` and `inputs`: how much of the lesser subspace of
    outputs (inputs) lies in the other, 0 to 1; `conflicts`: the share of elements whose signs differ; `fighting`: in
    how many of the modules they take from each other, a cosine of −0.3 or less.
    """

    files: tuple[int, int]  # their places among the names
    modules: int
    cosine: float | None
    outputs: float | None
    inputs: float | None
    conflicts: float | None
    fighting: int = 0


@dataclass(frozen=True)
class Block:
    """What the files do in one block, or in all; what there is for each file stands in their order.

    `modules`: how many it changes there; `norms`: ‖Δ‖ at its strength; `ranks`: the effective rank, exp of the entropy
    of σ²/Σσ², the mean of its modules; `together`: ‖ΣΔ‖; `base`: ‖W₀‖ of the modules that are changed, where a model
    is given; `pairs`: each two of the files.
    """

    modules: tuple[int, ...]
    norms: tuple[float, ...]
    ranks: tuple[float, ...]
    together: float
    base: float | None
    pairs: tuple[Between, ...]


@dataclass(frozen=True)
class Reported:
    """What `report` found: by block and in all, with what a person may want to do about it in words.

    `balance`: the factor, at most 1, for all strengths with which the sum has the norm of the strongest file alone.
    """

    names: tuple[str, ...]
    total: Block
    blocks: Mapping[str, Block]
    balance: float
    suggestions: tuple[str, ...]


def report(
    sources: Sequence[Source],
    *,
    model: str | os.PathLike[str] | Model | None = None,
    loras: Sequence[str | os.PathLike[str]] | None = None,
    seconds: float | None = None,
    progress: bool = False,
) -> Reported:
    """Return what the LoRAs of a prompt do together.

    `sources`: a prompt with tags, whose names are looked up in the folders `loras`; files with strengths
    ("ink.safetensors:0.7@IN=0"); or Requests. `model`: a folder of diffusers, a checkpoint or a Model, for norms beside
    those of the weights, for names of two kinds, and for what depends on its weights. `seconds`: how long it may take.

    Raises LoraFileError where a file or the model cannot be read or is needed, or no matrix is changed; TagSyntaxError
    and CatalogError for a source that cannot be read or found; ValueError where there is none; TimeoutError.
    """
    requests, of_tags = read_sources(sources, loras)
    if not requests:
        raise ValueError("there is nothing to report of: give a prompt with tags, or files")
    names = tuple(request.lora.name for request in requests)
    base = model if model is None or isinstance(model, Model) else open_model(model)
    until = math.inf if seconds is None else time.monotonic() + seconds
    found: dict[str, _Sums] = {}
    modules = [m for m in matched_modules(requests, base) if m.parts[0].change.parameter == "weight"]
    if base is not None and base.whole:
        fitting = ([part for part in module.parts if part.change.has_place()] for module in modules)
        modules = [Module(parts) for parts in fitting if parts]
    for module in steps(modules, "report", show=progress):
        if time.monotonic() > until:
            raise TimeoutError(f"{len(modules):,} modules of {len(names)} files take longer than {seconds:g} s")
        # Of each module only the figures stay: the factors of a large file in float64 are four times the file.
        if (each := met(module, requests, base)) is not None:
            found.setdefault(each.block, _Sums(len(names))).add(each)
    if not found:
        raise LoraFileError(f"{' and '.join(names)}: no matrix is changed at these strengths; give others than 0")
    ordered = {block: found[block] for block in sorted(found, key=in_order)}
    whole = _Sums(len(names))
    for sums in ordered.values():
        whole.add_all(sums)
    total = whole.block()
    balance = balance_of(total.norms, total.together)
    said = [*of_tags, *idle_of(requests, base), *_of_pairs(names, ordered), *_balanced(names, requests, balance)]
    return Reported(names, total, {block: sums.block() for block, sums in ordered.items()}, balance, tuple(said))


class _Sums:
    """What is added up over the modules of a block."""

    def __init__(self, count: int) -> None:
        """`count`: of files."""
        self.modules, self.energies, self.ranks = [0] * count, [0.0] * count, [0.0] * count
        self.pairs = {pair: Pair() for pair in combinations(range(count), 2)}
        self.bases: list[float] = []  # ‖W₀‖² of modules

    def add(self, module: Met) -> None:
        """Count a module."""
        for index, side in enumerate(module.sides):
            if side is not None:
                self.modules[index] += 1
                self.energies[index] += side.energy
                self.ranks[index] += side.rank
        for one, other in self.pairs:
            self.pairs[one, other] += Pair.of(module.sides[one], module.sides[other])
        if module.base is not None:
            self.bases.append(module.base * module.base)

    def add_all(self, other: _Sums) -> None:
        """Count all modules that another has counted."""
        self.modules = [a + b for a, b in zip(self.modules, other.modules, strict=True)]
        self.energies = [a + b for a, b in zip(self.energies, other.energies, strict=True)]
        self.ranks = [a + b for a, b in zip(self.ranks, other.ranks, strict=True)]
        for key, pair in other.pairs.items():
            self.pairs[key] += pair
        self.bases += other.bases

    def block(self) -> Block:
        """Return the figures."""
        together = sum(self.energies) + 2 * sum(pair.inner for pair in self.pairs.values())
        return Block(
            tuple(self.modules),
            tuple(map(math.sqrt, self.energies)),
            tuple(rank / max(1, count) for rank, count in zip(self.ranks, self.modules, strict=True)),
            math.sqrt(max(0.0, together)),
            math.sqrt(sum(self.bases)) if self.bases else None,
            tuple(
                Between(files, pair.modules, pair.cosine, pair.outputs, pair.inputs, pair.signs, pair.fighting)
                for files, pair in self.pairs.items()
            ),
        )


def _of_pairs(names: Sequence[str], blocks: Mapping[str, _Sums]) -> Iterator[str]:
    for one, other in combinations(range(len(names)), 2):
        yield from fights((names[one], names[other]), {block: sums.pairs[one, other] for block, sums in blocks.items()})


def _balanced(names: Sequence[str], requests: Sequence[Request], balance: float) -> Iterator[str]:
    """Yield the strengths with which all have the norm of the strongest alone, where they have more."""
    if balance >= 1:
        return
    listed = [_strengths(request, balance) for request in requests]
    told = ", ".join(f"{name} at {own}" for name, own in zip(names, listed, strict=True)) if all(listed) else ""
    said = f"at {balance:.2f} times their strengths all together have the norm of the strongest alone"
    yield f"{said}: {told}" if told else said


def _strengths(request: Request, factor: float) -> str | None:
    """Return the strengths of a tag times a factor, None where it has others than te and unet."""
    blocks = request.conditions.blocks
    if isinstance(request.te, Curve) or isinstance(request.unet, Curve):
        return None
    if blocks is not None and (blocks.inner, blocks.mid, blocks.outer) != (None, None, None):
        return None
    te, unet = f"{request.te * factor:.2g}", f"{request.unet * factor:.2g}"
    return unet if te == unet else f"te={te} unet={unet}"
