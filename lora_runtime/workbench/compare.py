"""compare: how two LoRAs meet, block by block: norms, angles, shared directions, and what they do together."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lora_runtime.errors import LoraFileError
from lora_runtime.workbench.report import Block, report
from lora_runtime.workbench.sources import Source, read_sources

__all__ = ["Compared", "Meeting", "compare"]


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
    requests, said = read_sources([first, second], loras)
    if len(requests) != 2:
        raise LoraFileError(f"{len(requests)} files: two are compared; give one file or tag for each")
    found = report(requests, model=model, progress=progress)
    blocks = {name: _meeting(block) for name, block in found.blocks.items()}
    one, other = found.names
    return Compared((one, other), _meeting(found.total), blocks, (*said, *found.suggestions))


def _meeting(block: Block) -> Meeting:
    (pair,) = block.pairs
    one, other = block.modules
    return Meeting(
        (one, other, pair.modules),
        (block.norms[0], block.norms[1]),
        block.together,
        pair.cosine,
        pair.outputs,
        pair.inputs,
        pair.conflicts,
        (block.ranks[0], block.ranks[1]),
        block.base,
    )
