"""extract: what a tuned model changed in its base, as a LoRA.

Two models of one layout are read side by side, one weight at a time. Matrices and kernels become factors, by sketches
whose loss is measured; biases, norms and bare parameters, where they changed, whole differences.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lora_runtime.errors import LoraFileError
from lora_runtime.header import hashes, shown
from lora_runtime.tensors import DTYPES, is_finite
from lora_runtime.workbench.base_model import BaseModel, open_model
from lora_runtime.workbench.changes import kernel
from lora_runtime.workbench.devices import device_named
from lora_runtime.workbench.differences import Difference
from lora_runtime.workbench.draft import ZERO, Draft, dtype_named
from lora_runtime.workbench.kept import Outcome
from lora_runtime.workbench.low_rank import Product
from lora_runtime.workbench.new_words import grows, words_of
from lora_runtime.workbench.notes import notes_of
from lora_runtime.workbench.pairs import Pair, pairs_of
from lora_runtime.workbench.progress import steps
from lora_runtime.workbench.sizes import NO_ROOM, Limit, limit_of, shared_out, spectrum_within
from lora_runtime.workbench.spelling import difference_keys, factor_keys
from lora_runtime.workbench.writing import Blank, check_free, header_size

__all__ = ["extract"]

_DEFAULT = 32
_MOST = 128  # with a size: a sketch of more takes longer than it is worth in a file that is to be small
_HASHES = 256  # bytes of the header: kohya's two hashes
_WIDEST = 999  # a rank of at least as many digits as any
_NOT_ASKED = "not among the modules that are asked for"


@dataclass(frozen=True)
class _Checkpoint:
    """A model as the note of what a file was made from has it."""

    name: str
    sha256: str
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Asked:
    """How matrices are cut, kernels among them, and where that is computed."""

    limit: Limit
    kernels: Limit
    exact: bool
    device: torch.device | None

    def limit_for(self, shape: torch.Size) -> Limit:
        """Return the limit for a weight of that shape."""
        return self.kernels if len(shape) > 2 and shape[2:].numel() > 1 else self.limit


def extract(
    tuned: str | os.PathLike[str],
    base: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    rank: int | None = None,
    energy: float | None = None,
    conv_rank: int | None = None,
    size: int | None = None,
    textual_inversion: bool | str = False,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    dtype: str | torch.dtype | None = None,
    exact: bool = False,
    device: str | torch.device | None = None,
    force: bool = False,
    progress: bool = False,
) -> Outcome:
    """Write what `tuned` changed in `base` as a LoRA to `out`, and return what was kept.

    Both are checkpoints (.safetensors) or folders of diffusers, of one layout. Each weight gets at most `rank` (32
    unless given), or the least rank that keeps the share `energy` of ‖Δ‖²; kernels larger than 1 at most `conv_rank`.
    `size`: the bytes of the file, shared out among all modules where they keep most; then `rank` is 128 unless given,
    and the models are read twice. `textual_inversion`: take new rows of CLIP's tables of tokens along as words, which
    the tokenizer beside them names, or, given as a text, as that one word.
    `include` and `exclude`: patterns with `*` for names of modules ("lora_unet_*attn*"). `exact`: full SVDs, not
    sketches. `device`: where these are computed, in float32; the CPU in float64 unless given. `dtype`: float32, float16
    or bfloat16; that of the tuned weights unless given.

    Raises ValueError where a number is out of its range; LoraFileError where a model cannot be read, the two have not a
    module in common, or nothing changed.
    """
    limit = limit_of(rank, energy)
    if size is not None and energy is not None:
        raise ValueError("size and energy exclude each other: give one")
    if not limit.cuts:
        limit = Limit(rank=_DEFAULT if size is None else _MOST)
    kernels = limit if conv_rank is None else limit_of(conv_rank)
    how = _Asked(limit, kernels, exact, device_named(device))
    path, wanted = check_free(out, force=force), dtype_named(dtype)
    models = open_model(tuned), open_model(base)
    draft, chosen = Draft(wanted), []
    for pair in pairs_of(*models):
        if not _asked(pair.stem, include, exclude):
            draft.tally.left_out[pair.stem] = _NOT_ASKED
        elif pair.base is None:
            draft.tally.left_out[pair.stem] = f"{models[1]} has nothing of that name"
        elif textual_inversion is not False and grows(pair.tuned.key, pair.tuned.info.shape, pair.base.info.shape):
            _add_words(draft, pair, models[0], None if textual_inversion is True else textual_inversion)
        elif pair.base.info.shape != pair.tuned.info.shape:
            shapes = f"{tuple(pair.tuned.info.shape)}, and {tuple(pair.base.info.shape)} in {models[1]}"
            draft.tally.left_out[pair.stem] = f"its shape is {shapes}"
        else:
            chosen.append(pair)
    if not any(pair.base is not None for pair in pairs_of(*models)):
        raise LoraFileError(f"{tuned}: has no weight by a name that {base} has: give two models of one layout")
    asked = {"rank": limit.rank, "energy": limit.energy, "conv_rank": conv_rank, "size": size}
    options = {name: value for name, value in asked.items() if value is not None}
    parents = [(_noted(model), {"role": role}) for model, role in zip(models, ("tuned", "base"), strict=True)]
    ranks = None
    if size is not None:
        header = header_size({}, notes_of(parents, "extract", options, [1, 2], [1.0, 2.0])) + _HASHES
        ranks = _ranks_for(draft, chosen, how, size - header, progress)
    for pair in steps(chosen, "extract", show=progress):
        _add(draft, pair, how, ranks)
    return draft.write(path, parents, "extract", options)


def _add(draft: Draft, pair: Pair, asked: _Asked, ranks: Mapping[str, int] | None) -> None:
    found = _difference(pair, asked.device)
    if isinstance(found, str):
        draft.tally.left_out.setdefault(pair.stem, found)
        return
    draft.tally.left_out.pop(pair.stem, None)  # of a module whose weight stayed and whose bias did not
    shape = pair.shape
    before, draft.dtype = draft.dtype, _dtype(draft, pair)
    try:
        if not _is_matrix(pair):
            draft.difference(pair.tuned.path, pair.stem, pair.parameter, (), found.whole().reshape(shape))
            return
        chosen = asked.limit_for(shape)
        if ranks is not None:
            if ranks[pair.stem] == 0:
                draft.tally.drop(pair.stem, found.energy(), NO_ROOM)
                return
            chosen = Limit(rank=ranks[pair.stem])
        spectrum = spectrum_within(found, chosen, exact=asked.exact)
        cut = spectrum.cut(chosen.of(spectrum.values, spectrum.energy))
        draft.factors(pair.tuned.path, pair.stem, (), cut, shape, spectrum.energy)
    finally:
        draft.dtype = before


def _difference(pair: Pair, device: torch.device | None) -> Difference | str:
    """Return what was changed, as a matrix or a column, or why there is nothing to be taken."""
    assert pair.base is not None
    tensor, original, kind = pair.read(pair.tuned), pair.read(pair.base), pair.tuned.info.dtype
    if not tensor.is_floating_point():
        return ZERO if torch.equal(tensor, original) else f"holds whole numbers ({kind})"
    if tensor.dtype.itemsize == 1:
        return f"stored in 8 bits ({kind}), and what they stand for a scale may tell"
    if tensor.dtype == original.dtype and torch.equal(tensor, original):
        return ZERO
    for stored, values in ((pair.tuned, tensor), (pair.base, original)):
        if not is_finite(values):
            raise LoraFileError(f"{stored.path}: {shown(stored.key)} has NaN or infinity in it")
    if _is_matrix(pair):
        found = Difference(tensor.flatten(1), original.flatten(1), device)
    else:
        found = Difference(tensor.reshape(-1, 1), original.reshape(-1, 1))
    return found if found.any() else ZERO


def _dtype(draft: Draft, pair: Pair) -> torch.dtype:
    return DTYPES[pair.tuned.info.dtype] if draft.dtype is None else draft.dtype


def _is_matrix(pair: Pair) -> bool:
    return pair.parameter == "weight" and len(pair.shape) >= 2


# ---- a file of some size --------------------------------------------------------------------------------------------


def _ranks_for(draft: Draft, pairs: Sequence[Pair], asked: _Asked, room: int, progress: bool) -> dict[str, int]:
    """Return ranks by module with which the tensors and their part of the header have at most `room` bytes.

    Of each module only the singular values are kept, so that the factors are made when the ranks are known.
    """
    spectra, costs = {}, {}
    blanks = {key: Blank(tensor.dtype, tuple(tensor.shape)) for key, tensor in draft.tensors.items()}  # new words
    taken = sum(blank.nbytes for blank in blanks.values())
    for pair in steps(pairs, "extract (singular values)", show=progress):
        found, shape = _difference(pair, asked.device), pair.shape
        if isinstance(found, str):
            continue
        dtype = _dtype(draft, pair)
        if not _is_matrix(pair):
            (key,) = difference_keys(pair.stem, pair.parameter, (), torch.empty(shape, device="meta"))
            blanks[key] = Blank(dtype, tuple(shape))
            taken += blanks[key].nbytes
            continue
        own, sizes = asked.limit_for(shape), found.shape
        spectra[pair.stem] = spectrum_within(found, own, exact=asked.exact).values[: own.rank]
        costs[pair.stem] = sum(sizes) * dtype.itemsize
        # Names, shapes and places in the header, with a rank that is at least as long as the one to come.
        empty = torch.empty((), device="meta")
        widest = Product(empty.new_empty(sizes[0], _WIDEST), empty.new_empty(_WIDEST, sizes[1]))
        for key, tensor in factor_keys(pair.stem, (), *kernel(widest, shape), 1.0).items():
            blanks[key] = Blank(dtype if tensor.ndim else torch.float32, tuple(tensor.shape))
        taken += 4
    taken += header_size(blanks, {})
    if taken >= room:
        raise LoraFileError(
            f"header, metadata and what is no matrix take {taken - room:,} bytes more than the size allows; give more"
        )
    return shared_out(spectra, costs, room - taken)


# ---- words ----------------------------------------------------------------------------------------------------------


def _add_words(draft: Draft, pair: Pair, model: BaseModel, word: str | None) -> None:
    assert pair.base is not None
    table, original = pair.tuned.read(), pair.base.read()
    first = len(original)
    alone = sum(name.startswith("text_encoder") for name in model.view.components) == 1
    words = words_of(model.path, pair.component, table[first:], first, word=word, alone=alone)
    draft.put({key: rows.to(_dtype(draft, pair)).contiguous() for key, rows in words.items()}, pair.tuned.path)
    names = ", ".join(key.split(".")[1] for key in words)
    draft.tally.notes.append(f"{len(table) - first:,} new tokens of the {pair.component} are taken along: {names}")
    changed = int((table[:first] != original).any(1).sum())
    draft.tally.left_out[pair.stem] = (
        f"{changed:,} of its old rows changed, which a table that grew has no place for" if changed else ZERO
    )


def _asked(stem: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
    if any(fnmatch.fnmatchcase(stem, pattern) for pattern in exclude):
        return False
    return not include or any(fnmatch.fnmatchcase(stem, pattern) for pattern in include)


def _noted(model: BaseModel) -> Any:
    """Return the name of a model, and the hash of its weights: of several files that of their hashes."""
    files = sorted({model.stored(p).path for root in model.view.components.values() for p in root.parameters()})
    found = [hashes(path).sha256 for path in files]
    return _Checkpoint(Path(model.path).name, found[0] if len(found) == 1 else " ".join(found))
