"""convert: the same tensors under other names, as another program or another layout of the model has them.

Names are only ever made forward, from the paths of a model: `_` cannot be turned back into `.`. So the model decides
which layout the new names are of: a folder of diffusers gives diffusers' names, a checkpoint the original ones.

    kohya       lora_unet_down_blocks_0_…_to_q      .lora_up.weight  .lora_down.weight  .alpha
    diffusers   unet.down_blocks.0.….to_q           .lora_B.weight   .lora_A.weight
    peft        base_model.model.down_blocks.0.….to_q
    comfy       diffusion_model.input_blocks.1.….to_q

Paths have no alpha. Where it is not the rank it is multiplied into the factor on the output side, which is told.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from lora_runtime.adapters import LowRank
from lora_runtime.dialects import WHOLE
from lora_runtime.errors import LoraFileError
from lora_runtime.key_endings import ending_of
from lora_runtime.lora import Lora, load_lora
from lora_runtime.workbench.base_model import BaseModel, open_model
from lora_runtime.workbench.changes import Change, changes_of
from lora_runtime.workbench.draft import Draft, embedding_keys, roles_of
from lora_runtime.workbench.extract import kohya_prefix, renamed
from lora_runtime.workbench.kept import Outcome
from lora_runtime.workbench.low_rank import energy_of
from lora_runtime.workbench.progress import steps
from lora_runtime.workbench.writing import check_free

__all__ = ["SPELLINGS", "convert"]

Spelling = Literal["kohya", "diffusers", "peft", "comfy"]
SPELLINGS: tuple[Spelling, ...] = get_args(Spelling)
_RENAMED = "renamed, bit for bit"
_FOLDED = "{:,} modules had another alpha than their rank, which is multiplied into their factors: {} have no alpha"


def convert(
    file: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    to: Spelling,
    model: str | os.PathLike[str],
    force: bool = False,
    progress: bool = False,
) -> Outcome:
    """Write a LoRA with its modules named as `to` says, in the layout of `model`, to `out`.

    Tensors stay bit for bit; only a scale that the new names cannot say is multiplied into a factor, and told. So do
    metadata, but for those of a configuration, which the new keys say themselves.

    Raises ValueError for another spelling; LoraFileError where a file cannot be read or written, or a module is no
    whole weight of this model, is of an algorithm other than LoRA, or has no name in the spelling.
    """
    if to not in SPELLINGS:
        raise ValueError(f"to {to}: give one of {', '.join(SPELLINGS)}")
    path = check_free(out, force=force)
    lora, base = load_lora(file), open_model(model)
    names = _Names(base, to)
    draft, folded = Draft(), 0
    for change in steps([*changes_of(lora)], "convert", show=progress):
        stem = names.of(change)
        for adapter in change.adapters:
            if not isinstance(adapter, LowRank) or adapter.mid is not None or "up" not in roles_of(adapter):
                raise LoraFileError(
                    f"{lora.path}: {change.stem} ({change.algorithms}) has no names that both programs read: "
                    "to-lora makes factors of it"
                )
            tensors, whole = _spelled(stem, adapter, to, lora)
            folded += not whole
            draft.put(tensors, lora.path)
            draft.alphas.add(float(adapter.rank if adapter.alpha is None else adapter.alpha))
        product = change.product()
        assert product is not None, change.stem
        energy = energy_of(product)
        draft.tally.add(change.stem, energy, energy, rank=change.adapters[0].rank)
        draft.tally.unchanged[_RENAMED] += 1
    draft.copy(lora, embedding_keys(lora))
    draft.tally.left_out.update(lora.unused)
    if folded:
        draft.tally.unchanged[_RENAMED] -= folded
        draft.tally.notes.append(_FOLDED.format(folded, f"names of {to}"))
    return draft.write(path, [(lora, {})], "convert", {"to": to})


def _spelled(stem: str, adapter: LowRank, to: Spelling, lora: Lora) -> tuple[Mapping[str, Tensor], bool]:
    """Return an adapter's tensors by their new keys, and whether they are those of the file."""
    kind = "kohya" if to == "kohya" else "peft"
    up, down = adapter.up, adapter.down
    keys = {role: stem + ending_of("lora", f"{kind}/{role}") for role in ("up", "down")}
    if to == "kohya":
        # In the dtype of the factors, as kohya's trainer writes it, where that can hold it.
        alpha = torch.tensor(adapter.scale * adapter.rank, dtype=torch.float32)
        own = alpha.to(up.dtype)
        return {
            **dict(zip(keys.values(), (up, down), strict=True)),
            f"{stem}.alpha": own if own == alpha else alpha,
        }, True
    scaled = up if adapter.scale == 1 else (up.double() * adapter.scale).to(up.dtype)
    if not bool(torch.isfinite(scaled).all()):
        raise LoraFileError(f"{lora.path}: {stem}: times its scale {adapter.scale:g} it is beyond {up.dtype}")
    return {keys["up"]: scaled, keys["down"]: down}, adapter.scale == 1


class _Names:
    """What the modules of a model are called in a spelling."""

    def __init__(self, model: BaseModel, to: Spelling) -> None:
        self._model, self._to = model, to
        self._first = ""  # the component of the first module
        self._alone = sum(name.startswith("text_encoder") for name in model.view.components) == 1
        self._others = {name: renamed(name, model) for name in model.view.components}

    def of(self, change: Change) -> str:
        """Return the new name of a module; LoraFileError where it has none."""
        target = self._model.targets.find(change.stem)
        where = f"{change.lora.path}: {change.stem}"
        if target is None:
            raise LoraFileError(f"{where}: {self._model.reason(change.stem)} ({self._model})")
        if target.rest or target.part != WHOLE:
            raise LoraFileError(
                f"{where} is for {target}, a part of a weight or several: names alone make no file for this layout"
            )
        component, path = target.component, target.path
        if self._to == "kohya":
            return kohya_prefix(component, self._alone) + self._others[component].get(path, path).replace(".", "_")
        if self._to == "diffusers":
            return f"{component}.{path}"
        if self._to == "peft":
            if component != (self._first or component):
                raise LoraFileError(f"{where}: a file of PEFT is for one model, and this one is for several components")
            self._first = component
            return f"base_model.model.{path}"
        if component.startswith("text_encoder"):
            raise LoraFileError(f"{where}: names of comfy are for denoisers; of text encoders it reads kohya's")
        return f"diffusion_model.{path}"
