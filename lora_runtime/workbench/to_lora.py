"""to-lora: any adapter as a plain LoRA, which every program reads, at a rank or with all that it has.

What has factors of low rank (LoHa) is cut from these; of all else ΔW is computed, from the base model's weights where
it depends on them (DoRA, OFT, IA³ …), and taken apart. Biases and norms have no rank and stay differences.
"""

from __future__ import annotations

import os

import torch

from lora_runtime.lora import load_lora
from lora_runtime.workbench.base_model import open_model
from lora_runtime.workbench.changes import changes_of
from lora_runtime.workbench.devices import device_named
from lora_runtime.workbench.differences import Difference
from lora_runtime.workbench.draft import ZERO, Draft, dtype_named, embedding_keys, says_its_scale
from lora_runtime.workbench.kept import Outcome
from lora_runtime.workbench.low_rank import energy_of, significant, spectrum_of
from lora_runtime.workbench.progress import steps
from lora_runtime.workbench.sizes import limit_of, spectrum_within
from lora_runtime.workbench.writing import check_free

__all__ = ["to_lora"]

_PLAIN = "a product of two factors already"
_VECTORS = "{:,} biases, norms and bare parameters are kept as differences, which diffusers and PEFT do not read"


def to_lora(
    file: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    rank: int | None = None,
    energy: float | None = None,
    model: str | os.PathLike[str] | None = None,
    dtype: str | torch.dtype | None = None,
    exact: bool = False,
    device: str | torch.device | None = None,
    force: bool = False,
    progress: bool = False,
) -> Outcome:
    """Write the adapters in `file` as a plain LoRA to `out`, and return what was kept.

    Each module gets at most `rank`, or the least rank that keeps the share `energy` of ‖Δ‖² (from 0 to 1); without
    either as many as it has beyond the rounding of float64, so that nothing is lost. `model`: a folder of diffusers or
    a checkpoint, for what depends on its weights. `exact`: full SVDs where a rank is asked for, not sketches.
    `device`: where factorisations are made, in float32; the CPU in float64 unless given. `dtype`: float32, float16 or
    bfloat16; that of the file unless given.

    Raises ValueError where a number is out of its range; LoraFileError where a file cannot be read or written, or a
    change depends on a model that is not given.
    """
    limit = limit_of(rank, energy)
    path, wanted = check_free(out, force=force), dtype_named(dtype)
    place = device_named(device)
    lora = load_lora(file)
    base = None if model is None else open_model(model)
    draft, vectors = Draft(wanted), 0
    for change in steps([*changes_of(lora, base)], "to-lora", show=progress):
        stem, adapters = change.stem, change.adapters
        if (reason := change.misplaced()) is not None:
            draft.tally.drop(stem, 0.0, reason)
            continue
        product = change.product()
        if product is not None and change.is_plain and not limit.cuts and all(map(says_its_scale, adapters)):
            draft.copy_module(lora, stem, adapters, energy_of(product), _PLAIN)
            continue
        if product is not None:
            spectrum, shape = spectrum_of(product, place), change.shape()
        else:
            delta = change.dense()
            shape = delta.shape
            if not bool(delta.any()):
                draft.tally.drop(stem, 0.0, ZERO)
                continue
            if change.parameter != "weight" or delta.ndim < 2:
                draft.difference(lora.path, stem, change.parameter, adapters, delta)
                vectors += 1
                continue
            spectrum = spectrum_within(Difference(delta.flatten(1), device=place), limit, exact=exact)
        count = limit.of(spectrum.values, spectrum.energy) if limit.cuts else significant(spectrum)
        if count == 0:
            draft.tally.drop(stem, 0.0, ZERO)
            continue
        draft.factors(lora.path, stem, adapters, spectrum.cut(count), shape, spectrum.energy)
    draft.copy(lora, embedding_keys(lora))
    draft.tally.left_out.update(lora.unused)
    if vectors:
        draft.tally.notes.append(_VECTORS.format(vectors))
    options = {name: value for name, value in (("rank", rank), ("energy", energy)) if value is not None}
    return draft.write(path, [(lora, {})], "to-lora", options)
