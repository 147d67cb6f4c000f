"""convert: the same tensors under other names, as another program or another layout of the model has them.

Names are only ever made forward, from the paths of a model: `_` cannot be turned back into `.`. So the model decides
which layout the new names are of: a folder of diffusers gives diffusers' names, a checkpoint the original ones. For
comfy and original a folder is taken in the original's names, as the family's record has them.

    kohya       lora_unet_down_blocks_0_…_to_q      .lora_up.weight  .lora_down.weight  .alpha
    diffusers   unet.down_blocks.0.….to_q           .lora_B.weight   .lora_A.weight
    peft        base_model.model.down_blocks.0.….to_q
    comfy       diffusion_model.double_blocks.0.img_attn.qkv
    original    double_blocks.0.img_attn.qkv

The last is what the model's own trainers write: Black Forest Labs' and XLabs', Tencent's, Alibaba's.

Paths have no alpha. Where it is not the rank it is multiplied into the factor on the output side, which is told.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal, NoReturn, get_args

import torch
from torch import Tensor

from lora_runtime.adapters import LowRank
from lora_runtime.dialects import WHOLE
from lora_runtime.errors import LoraFileError
from lora_runtime.key_endings import ending_of
from lora_runtime.lora import Lora, load_lora
from lora_runtime.merge import region_of
from lora_runtime.targets import Target
from lora_runtime.workbench.base_model import Model, open_model
from lora_runtime.workbench.changes import Change, changes_of
from lora_runtime.workbench.draft import ZERO, Draft, embedding_keys, roles_of
from lora_runtime.workbench.fusing import Pair, cut_apart, put_together
from lora_runtime.workbench.kept import Outcome
from lora_runtime.workbench.known_models import known_model
from lora_runtime.workbench.low_rank import Product, energy_of
from lora_runtime.workbench.naming import kohya_prefix, names_in_files, renamed
from lora_runtime.workbench.original_names import in_original_names
from lora_runtime.workbench.progress import steps
from lora_runtime.workbench.writing import check_free

__all__ = ["SPELLINGS", "convert"]

Spelling = Literal["kohya", "diffusers", "peft", "comfy", "original"]
SPELLINGS: tuple[Spelling, ...] = get_args(Spelling)
_ORIGINAL = ("comfy", "original")
_RENAMED = "renamed, bit for bit"
_FOLDED = "{:,} modules had another alpha than their rank, which is multiplied into their factors: {} have no alpha"
_SCALES = "{:,} weights are put together of modules with several scales, which are multiplied into their factors"


def convert(
    file: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    to: Spelling,
    model: str | os.PathLike[str] | None = None,
    force: bool = False,
    progress: bool = False,
) -> Outcome:
    """Write a LoRA with its modules named as `to` says, in the layout of `model`, to `out`.

    Without a model the file's family tells the names, of SD 1 and 2, SDXL and Flux: those that its files have in this
    spelling, original ones for comfy and original, and for SDXL's and Flux's by kohya.

    Tensors stay bit for bit; only a scale that the new names cannot say is multiplied into a factor, and told. So do
    metadata, but for those of a configuration, which the new keys say themselves. What the model has in one weight and
    the file in several, or the other way round, is put together or cut to rows, exactly (`fusing.py`).

    Raises ValueError for another spelling; LoraFileError where a file cannot be read or written, or a module has
    no place in this model, is of an algorithm other than LoRA, or has no name in the spelling.
    """
    if to not in SPELLINGS:
        raise ValueError(f"to {to}: give one of {', '.join(SPELLINGS)}")
    path = check_free(out, force=force)
    lora = load_lora(file)
    base = _model_for(lora, model, to)
    names, made = _Names(base, to), _Made(base)
    for change in changes_of(lora):
        made.add(change)
    draft, folded = Draft(), 0
    for place, pair, origin in steps([*made.pairs()], "convert", show=progress):
        stem = names.of(place, origin)
        tensors, whole = _spelled(stem, pair, to, lora)
        folded += not whole
        draft.put(tensors, lora.path)
        draft.alphas.add(float(pair.scale * pair.rank))
        energy = energy_of(Product(pair.up.flatten(1).double(), pair.down.flatten(1).double())) * pair.scale**2
        draft.tally.add(stem, energy, energy, rank=pair.rank)
        draft.tally.unchanged[_RENAMED] += whole
    draft.copy(lora, embedding_keys(lora))
    draft.tally.left_out.update({**lora.unused, **made.zero})
    if folded:
        draft.tally.notes.append(_SCALES.format(folded) if to == "kohya" else _FOLDED.format(folded, f"names of {to}"))
    draft.tally.notes.extend(made.notes())
    return draft.write(path, [(lora, {})], "convert", {"to": to})


def _spelled(stem: str, pair: Pair, to: Spelling, lora: Lora) -> tuple[Mapping[str, Tensor], bool]:
    """Return factors by their new keys, and whether they are those of the file."""
    kind = "kohya" if to == "kohya" else "peft"
    keys = {role: stem + ending_of("lora", f"{kind}/{role}") for role in ("up", "down")}
    if to == "kohya":
        # In the dtype of the factors, as kohya's trainer writes it, where that can hold it.
        alpha = torch.tensor(pair.scale * pair.rank, dtype=torch.float32)
        own = alpha.to(pair.up.dtype)
        tensors = {keys["up"]: pair.up, keys["down"]: pair.down, f"{stem}.alpha": own if own == alpha else alpha}
        return tensors, pair.exact
    scaled = pair.up if pair.scale == 1 else (pair.up.double() * pair.scale).to(pair.up.dtype)
    if not bool(torch.isfinite(scaled).all()):
        raise LoraFileError(f"{lora.path}: {stem}: times its scale {pair.scale:g} it is beyond {pair.up.dtype}")
    return {keys["up"]: scaled, keys["down"]: pair.down}, pair.exact and pair.scale == 1


def _model_for(lora: Lora, model: str | os.PathLike[str] | None, to: Spelling) -> Model:
    """Return the model whose names are written."""
    if model is not None:
        base = open_model(model)
        return in_original_names(base) if to in _ORIGINAL else base
    try:
        return known_model(lora.family, to)
    except LoraFileError as error:
        raise LoraFileError(f"{lora.path}: {error}") from error


class _Made:
    """The factors of a file by the weights of a model, which may have several of the file's in one or the contrary."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._theirs = {
            (name, path, part.index, part.count): theirs
            for name, root in model.view.components.items()
            for path, theirs, part in names_in_files(name, root)
        }
        self._places: dict[tuple[str, str], list[tuple[Target, Pair, str]]] = {}
        self.zero: dict[str, str] = {}
        self._cut = self._joined = 0

    def add(self, change: Change) -> None:
        """Take what a file changes in one of its modules; LoraFileError where it cannot be this model's."""
        target = self._model.targets.find(change.stem)
        where = f"{change.lora.path}: {change.stem}"
        if target is None:
            raise LoraFileError(f"{where}: {self._model.reason(change.stem)} ({self._model})")
        if len(change.adapters) != 1 or not change.is_plain:
            self._refuse(change)
        (adapter,) = change.adapters
        if not isinstance(adapter, LowRank) or adapter.mid is not None or "up" not in roles_of(adapter):
            self._refuse(change)
        assert isinstance(adapter, LowRank)
        if any(place.part.inputs is not None for place in target.places):
            raise LoraFileError(f"{where} is for {target}, of which this layout has other inputs: another model")
        whole = Pair(adapter.up, adapter.down, adapter.scale)
        rows = [self._rows(place) for place in target.places]
        if sum(rows) != len(adapter.up):
            raise LoraFileError(f"{where} has {len(adapter.up):,} rows, and {target} has {sum(rows):,}: another model")
        pairs: list[Pair | None] = [whole]
        if len(rows) > 1:
            self._cut += 1
            pairs = cut_apart(whole, rows)
        for place, pair in zip(target.places, pairs, strict=True):
            if pair is None:
                self.zero[str(place)] = ZERO
                continue
            turned = pair.turned() if place.part.swapped else pair
            theirs = self._theirs.get((place.component, place.path, place.part.index, place.part.count))
            if theirs is not None:
                place = replace(place, path=theirs, part=WHOLE)
            self._places.setdefault((place.component, place.path), []).append((place, turned, where))

    def pairs(self) -> Iterator[tuple[Target, Pair, str]]:
        """Yield each weight with its factors, and what of the file they are."""
        for found in self._places.values():
            place, pair, where = found[0]
            if len(found) > 1 or place.part.count > 1:
                pair = self._together(found)
                self._joined += 1
            yield place, pair, where

    def notes(self) -> Iterator[str]:
        """Yield what was cut and put together."""
        if self._cut:
            yield f"{self._cut:,} modules are several weights of the model: their rows were cut apart, which is exact"
        if self._joined:
            yield f"{self._joined:,} weights of the model are several modules: they were put together, which is exact"

    def _together(self, found: Sequence[tuple[Target, Pair, str]]) -> Pair:
        """Return the factors of a weight of which modules have parts; rows that none has are zero."""
        first, _, where = found[0]
        shape = self._model.sizes(first, first.parameter)
        assert shape is not None
        parts: list[Pair | None] = []
        rows: list[int] = []
        for place, pair, own in sorted(found, key=lambda item: item[0].part.index / item[0].part.count):
            start = shape[0] * place.part.index // place.part.count
            if start < sum(rows):
                raise LoraFileError(f"{own} and {where} are for the same rows of {first.component}.{first.path}")
            if start > sum(rows):
                parts.append(None)
                rows.append(start - sum(rows))
            parts.append(pair)
            rows.append(len(pair.up))
        if sum(rows) < shape[0]:
            parts.append(None)
            rows.append(shape[0] - sum(rows))
        return put_together(parts, rows)

    def _rows(self, place: Target) -> int:
        shape = self._model.sizes(place, place.parameter)
        assert shape is not None, place
        return int(region_of(torch.empty(shape, device="meta"), place.part).shape[0])

    @staticmethod
    def _refuse(change: Change) -> NoReturn:
        raise LoraFileError(
            f"{change.lora.path}: {change.stem} ({change.algorithms}) has no names that both programs read: "
            "to-lora makes factors of it"
        )


class _Names:
    """What the modules of a model are called in a spelling."""

    def __init__(self, model: Model, to: Spelling) -> None:
        self._model, self._to = model, to
        self._first = ""  # the component of the first module
        self._alone = sum(name.startswith("text_encoder") for name in model.view.components) == 1
        self._others = {name: renamed(name, model) for name in model.view.components}

    def of(self, place: Target, where: str) -> str:
        """Return the new name of a module; LoraFileError where it has none."""
        component, path = place.component, place.path
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
            raise LoraFileError(f"{where}: names of {self._to} are for denoisers; of text encoders take kohya's")
        return f"diffusion_model.{path}" if self._to == "comfy" else path
