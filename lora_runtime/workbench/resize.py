"""resize: the same change at a lower rank, module by module the best there is (Eckart and Young)."""

from __future__ import annotations

import os

import torch

from lora_runtime.adapters import LowRank
from lora_runtime.adapters.lora import BiasOfLowRank
from lora_runtime.errors import LoraFileError
from lora_runtime.lora import Lora, load_lora
from lora_runtime.workbench.changes import Change, changes_of
from lora_runtime.workbench.devices import device_named
from lora_runtime.workbench.draft import ZERO, Draft, dtype_named, dtype_of, embedding_keys, says_its_scale
from lora_runtime.workbench.kept import Outcome
from lora_runtime.workbench.low_rank import energy_of, spectrum_of
from lora_runtime.workbench.progress import steps
from lora_runtime.workbench.sizes import NO_ROOM, limit_of, shared_out
from lora_runtime.workbench.writing import Blank, check_free, header_size

__all__ = ["resize"]

_NO_PRODUCT = "not a product of two factors ({}): to-lora makes one of it"
_SMALL = "of no higher rank"


def resize(
    file: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    rank: int | None = None,
    energy: float | None = None,
    ratio: float | None = None,
    size: int | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    force: bool = False,
    progress: bool = False,
) -> Outcome:
    """Write the LoRA in `file` at lower ranks to `out`, and return what was kept.

    One of: `rank`, the highest that a module may have; `energy`, the share of ‖Δ‖² that each module keeps, from 0 to 1;
    `ratio`, the greatest singular value by the least that is kept; `size`, the bytes of the new file, shared out among
    all modules where they keep most. A module of no higher rank, and what is no LoRA in the file, stays bit for bit.
    `dtype`: float32, float16 or bfloat16; that of the file unless given.

    `device`: where factorisations are made, in float32; the CPU in float64 unless given.

    Raises ValueError where not one of these is given or a number is out of its range; LoraFileError where a file cannot
    be read or written.
    """
    limit = limit_of(rank, energy, ratio)
    if limit.cuts == (size is not None):
        raise ValueError("give one of rank, energy, ratio and size")
    path, wanted = check_free(out, force=force), dtype_named(dtype)
    place = device_named(device)
    lora = load_lora(file)
    draft = Draft(wanted)
    changes = [*changes_of(lora)]
    rest = _keys_outside(lora, changes)
    draft.copy(lora, rest)
    ranks = None if size is None else _ranks_for(lora, changes, rest, size, wanted, place, progress)
    cut: set[str] = set()
    for change in steps(changes, "resize", show=progress):
        product = change.product() if change.is_plain else None
        if product is None and change.stem in cut and isinstance(change.adapters[0], BiasOfLowRank):
            # Its key means values times the scale of factors, which is another now.
            draft.difference(lora.path, change.stem, "bias", change.adapters, change.dense())
            continue
        if product is None and lora.configured:
            raise LoraFileError(
                f"{lora.path}: {change.stem} ({change.algorithms}) is no product of two factors, and settings beside "
                "the tensors tell what it means, which the new file would not have: make it one by to-lora first"
            )
        if product is None:
            reason = _NO_PRODUCT.format(change.algorithms)
            draft.copy_module(lora, change.stem, change.adapters, 0.0, reason)
            continue
        spectrum = spectrum_of(product, place)
        if spectrum.energy == 0:
            draft.tally.drop(change.stem, 0.0, ZERO)
            continue
        new = limit.of(spectrum.values, spectrum.energy) if ranks is None else ranks[change.stem]
        if new == 0:
            draft.tally.drop(change.stem, spectrum.energy, NO_ROOM)
        elif new >= product.rank and lora.configured and not all(map(says_its_scale, change.adapters)):
            draft.factors(lora.path, change.stem, change.adapters, product, change.shape(), spectrum.energy)
        elif new >= product.rank:
            draft.copy_module(lora, change.stem, change.adapters, energy_of(product), _SMALL)
        else:
            cut.add(change.stem)
            draft.factors(lora.path, change.stem, change.adapters, spectrum.cut(new), change.shape(), spectrum.energy)
    asked = {"rank": rank, "energy": energy, "ratio": ratio, "size": size}
    options = {name: value for name, value in asked.items() if value is not None}
    return draft.write(path, [(lora, {})], "resize", options)


def _keys_outside(lora: Lora, changes: list[Change]) -> list[str]:
    """Return the keys that belong to no adapter: embeddings, and what is not understood."""
    taken = {key for change in changes for adapter in change.adapters for key in adapter.keys}
    return [key for key in (*lora.unused, *embedding_keys(lora)) if key not in taken]


def _ranks_for(
    lora: Lora,
    changes: list[Change],
    rest: list[str],
    size: int,
    dtype: torch.dtype | None,
    place: torch.device | None,
    progress: bool,
) -> dict[str, int]:
    """Return ranks by module with which the file has at most `size` bytes."""
    spectra, costs, alphas = {}, {}, 0
    for change in steps(changes, "resize (singular values)", show=progress):
        product = change.product() if change.is_plain else None
        if product is not None:
            spectra[change.stem] = spectrum_of(product, place).values
            width = (dtype or dtype_of(change.adapters)).itemsize
            costs[change.stem] = (product.up.shape[0] + product.down.shape[1]) * width
            alphas += 4
    taken = _bytes_beside(lora, changes, rest, dtype) + alphas
    if taken >= size:
        raise LoraFileError(
            f"{lora.path}: header, metadata and what is no LoRA in it take {taken:,} bytes, and {size:,} are allowed"
        )
    return shared_out(spectra, costs, size - taken)


def _bytes_beside(lora: Lora, changes: list[Change], rest: list[str], dtype: torch.dtype | None) -> int:
    """Return at most how many bytes a new file has beside its factors, by writing all else into memory."""
    draft = Draft(dtype)
    draft.copy(lora, rest)
    for change in changes:
        if not change.is_plain:
            draft.copy_module(lora, change.stem, change.adapters, 0.0, "")
    blanks = {key: Blank(tensor.dtype, tuple(tensor.shape)) for key, tensor in draft.tensors.items()}
    fixed = sum(blank.nbytes for blank in blanks.values())
    # The names and shapes of all modules, and metadata with the longest numbers; hashes and the note of what it is of.
    for change in changes:
        for adapter in change.adapters:
            if isinstance(adapter, LowRank):
                keys = [key for key in adapter.keys if not key.endswith(".alpha")]
                blanks |= {key: Blank(torch.bfloat16, (adapter.up.shape[0], adapter.rank, 1, 1)) for key in keys}
                blanks[f"{change.stem}.alpha"] = Blank(torch.float32, ())
    return fixed + header_size(blanks, dict(lora.metadata)) + _NOTES


_NOTES = 1024  # bytes: hashes, and what the file was made from
