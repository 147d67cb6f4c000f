"""extract: what a tuned model changed in its base, as a LoRA.

Two models of one layout are read side by side, one weight at a time. Matrices and kernels become factors, by sketches
whose loss is measured; biases, norms and bare parameters, where they changed, whole differences.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lora_runtime.dialects import ANY, DENOISERS, WHOLE
from lora_runtime.dialects.ldm_unet import LDM_UNET
from lora_runtime.errors import LoraFileError
from lora_runtime.header import hashes
from lora_runtime.workbench.base_model import BaseModel, Stored, open_model
from lora_runtime.workbench.draft import ZERO, Draft, dtype_named
from lora_runtime.workbench.kept import Outcome
from lora_runtime.workbench.progress import steps
from lora_runtime.workbench.sizes import Limit, limit_of, spectrum_within
from lora_runtime.workbench.writing import check_free

__all__ = ["extract", "kohya_prefix", "renamed"]

_DEFAULT = 32
_IN_TEXT_MODEL = ("encoder.layers.", "embeddings.", "final_layer_norm")  # of CLIP; T5 has encoder.block
_NOT_ASKED = "not among the modules that are asked for"


@dataclass(frozen=True)
class _Checkpoint:
    """A model as the note of what a file was made from has it."""

    name: str
    sha256: str
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Pair:
    """One parameter of both models."""

    stem: str
    parameter: str  # "weight" or "bias"
    tuned: Stored
    base: Stored | None


def extract(
    tuned: str | os.PathLike[str],
    base: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    rank: int | None = None,
    energy: float | None = None,
    conv_rank: int | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    dtype: str | torch.dtype | None = None,
    exact: bool = False,
    force: bool = False,
    progress: bool = False,
) -> Outcome:
    """Write what `tuned` changed in `base` as a LoRA to `out`, and return what was kept.

    Both are checkpoints (.safetensors) or folders of diffusers, of one layout. Each weight gets at most `rank` (32
    unless given), or the least rank that keeps the share `energy` of ‖Δ‖²; kernels larger than 1 at most `conv_rank`.
    `include` and `exclude`: patterns with `*` for names of modules ("lora_unet_*attn*"). `exact`: full SVDs, not
    sketches. `dtype`: float32, float16 or bfloat16; that of the tuned weights unless given.

    Raises ValueError where a number is out of its range; LoraFileError where a model cannot be read, the two have not a
    module in common, or nothing changed.
    """
    limit = limit_of(rank, energy)
    if not limit.cuts:
        limit = Limit(rank=_DEFAULT)
    kernels = limit if conv_rank is None else limit_of(conv_rank)
    path, wanted = check_free(out, force=force), dtype_named(dtype)
    models = open_model(tuned), open_model(base)
    draft = Draft(wanted)
    for pair in steps([*_pairs(*models)], "extract", show=progress):
        if not _asked(pair.stem, include, exclude):
            draft.tally.left_out[pair.stem] = _NOT_ASKED
        elif pair.base is None:
            draft.tally.left_out[pair.stem] = f"{models[1]} has nothing of that name"
        elif pair.base.info.shape != pair.tuned.info.shape:
            shapes = f"{tuple(pair.tuned.info.shape)}, and {tuple(pair.base.info.shape)} in {models[1]}"
            draft.tally.left_out[pair.stem] = f"its shape is {shapes}"
        else:
            _add(draft, pair, limit, kernels, exact)
    if not any(pair.base is not None for pair in _pairs(*models)):
        raise LoraFileError(f"{tuned}: has no weight by a name that {base} has: give two models of one layout")
    asked = {"rank": limit.rank, "energy": limit.energy, "conv_rank": conv_rank}
    options = {name: value for name, value in asked.items() if value is not None}
    parents = [(_noted(model), {"role": role}) for model, role in zip(models, ("tuned", "base"), strict=True)]
    return draft.write(path, parents, "extract", options)


def _add(draft: Draft, pair: _Pair, limit: Limit, kernels: Limit, exact: bool) -> None:
    tensor, original = pair.tuned.read(), pair.base.read() if pair.base is not None else None
    assert original is not None
    kind = pair.tuned.info.dtype
    if not tensor.is_floating_point():
        draft.tally.left_out[pair.stem] = ZERO if torch.equal(tensor, original) else f"holds whole numbers ({kind})"
        return
    if tensor.dtype.itemsize == 1:
        draft.tally.left_out[pair.stem] = f"stored in 8 bits ({kind}), and what they stand for a scale may tell"
        return
    own = tensor.dtype if draft.dtype is None else draft.dtype
    delta = tensor.double().sub_(original)
    if not bool(delta.any()):
        draft.tally.left_out.setdefault(pair.stem, ZERO)
        return
    draft.tally.left_out.pop(pair.stem, None)  # of a module whose weight stayed and whose bias did not
    draft.dtype, before = own, draft.dtype
    try:
        if pair.parameter != "weight" or delta.ndim < 2:
            draft.difference(pair.tuned.path, pair.stem, pair.parameter, (), delta)
            return
        chosen = kernels if delta.ndim > 2 and delta[0, 0].numel() > 1 else limit
        spectrum = spectrum_within(delta.flatten(1), chosen, exact=exact)
        cut = spectrum.cut(chosen.of(spectrum.values, spectrum.energy))
        draft.factors(pair.tuned.path, pair.stem, (), cut, delta.shape, spectrum.energy)
    finally:
        draft.dtype = before


def _asked(stem: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
    if any(fnmatch.fnmatchcase(stem, pattern) for pattern in exclude):
        return False
    return not include or any(fnmatch.fnmatchcase(stem, pattern) for pattern in include)


# ---- names ----------------------------------------------------------------------------------------------------------


def _pairs(tuned: BaseModel, base: BaseModel) -> Iterator[_Pair]:
    """Yield the weights and biases of the tuned model, with those of the base by the same name."""
    others = {(name, path): stored for name, path, stored in _weights(base)}
    alone = sum(name.startswith("text_encoder") for name in tuned.view.components) == 1
    names: dict[str, Mapping[str, str]] = {}
    for name, path, stored in _weights(tuned):
        if name not in names:
            names[name] = renamed(name, tuned)
        module, _, last = path.rpartition(".")
        if last == "bias":
            stem, parameter = names[name].get(module, module), "bias"
        else:
            own = module if last in ("weight", "scale", "in_proj_weight") else path
            stem, parameter = names[name].get(own, own), "weight"
        if last != "in_proj_bias" and stem:
            yield _Pair(kohya_prefix(name, alone) + stem.replace(".", "_"), parameter, stored, others.get((name, path)))


def _weights(model: BaseModel) -> Iterator[tuple[str, str, Stored]]:
    """Yield component, path and place of all weights."""
    for name, root in model.view.components.items():
        for path, parameter in root.named_parameters(remove_duplicate=False):
            yield name, path, model.stored(parameter)


def renamed(component: str, model: BaseModel) -> Mapping[str, str]:
    """Return other names for modules, where files have others than the model.

    diffusers' for an original UNet of SD 1 or 2: it reads the original names for SDXL alone, and the WebUI reads both.
    And those of a CLIP with its level `text_model`, which newer versions of transformers leave out.
    """
    paths = [own.rpartition(".")[0] for name, own, _ in _weights(model) if name == component]
    if component.startswith("text_encoder"):
        return {path: f"text_model.{path}" for path in paths if path.startswith(_IN_TEXT_MODEL)}
    if component != "unet" or "text_encoder_2" in model.view.components:
        return {}
    return {path: theirs for path, theirs, part in LDM_UNET.translations(paths) if part == WHOLE}


def kohya_prefix(component: str, alone: bool) -> str:
    """Return what kohya's names begin with; `alone`: whether the model has one text encoder."""
    if component.startswith("text_encoder"):
        number = component.rpartition("_")[2]
        return f"lora_te{number if number.isdigit() else '' if alone else 1}_"
    if component not in (*DENOISERS, ANY):
        raise LoraFileError(f"{component}: no file of LoRAs has a name for this component")
    return "lora_unet_"


def _noted(model: BaseModel) -> Any:
    """Return the name of a model, and the hash of its weights: of several files that of their hashes."""
    files = sorted({model.stored(p).path for root in model.view.components.values() for p in root.parameters()})
    found = [hashes(path).sha256 for path in files]
    return _Checkpoint(Path(model.path).name, found[0] if len(found) == 1 else " ".join(found))
