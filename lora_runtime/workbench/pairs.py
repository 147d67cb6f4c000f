"""The weights of two models of one layout, side by side, by the names that files have for them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lora_runtime.dialects import WHOLE, Part
from lora_runtime.merge import region_of, rows_of
from lora_runtime.workbench.base_model import BaseModel, Stored
from lora_runtime.workbench.naming import kohya_prefix, names_in_files, renamed

__all__ = ["Pair", "pairs_of"]

_OF_THEIR_MODULE = ("weight", "scale", "in_proj_weight", "bias", "in_proj_bias")  # the others have names of their own
_BIASES = ("bias", "in_proj_bias")


@dataclass(frozen=True)
class Pair:
    """One parameter of both models, or the part of one for which files have a name."""

    stem: str
    parameter: str  # "weight" or "bias"
    tuned: Stored
    base: Stored | None
    component: str
    part: Part = WHOLE

    @property
    def shape(self) -> torch.Size:
        """The shape as files have it."""
        return region_of(torch.empty(self.tuned.shape, device="meta"), self.part).shape

    def read(self, stored: Stored) -> Tensor:
        """Return the values of one of the two as files have them."""
        return rows_of(stored.read(), self.part)


def pairs_of(tuned: BaseModel, base: BaseModel) -> Iterator[Pair]:
    """Yield the weights and biases of the tuned model, with those of the base by the same name."""
    others = {(name, path): stored for name, path, stored in _weights(base)}
    alone = sum(name.startswith("text_encoder") for name in tuned.view.components) == 1
    called = {name: _called(name, tuned) for name in tuned.view.components}
    for name, path, stored in _weights(tuned):
        module, _, last = path.rpartition(".")
        own = module if last in _OF_THEIR_MODULE else path
        for theirs, part in called[name].get(own, [(own, WHOLE)]):
            if not theirs or (last == "in_proj_bias" and part is WHOLE):
                continue  # files have no name for it
            stem = kohya_prefix(name, alone) + theirs.replace(".", "_")
            if last in _BIASES:
                part = replace(part, transposed=False) if part.transposed else part
                yield Pair(stem, "bias", stored, others.get((name, path)), name, part)
            else:
                yield Pair(stem, "weight", stored, others.get((name, path)), name, part)


def _called(component: str, model: BaseModel) -> Mapping[str, Sequence[tuple[str, Part]]]:
    """Return what files call modules, where that is not their own name, and which part of a weight that is."""
    found: defaultdict[str, list[tuple[str, Part]]] = defaultdict(list)
    for path, theirs in renamed(component, model).items():
        found[path].append((theirs, WHOLE))
    for path, theirs, part in names_in_files(component, model.view.components[component]):
        found[path].append((theirs, part))
    return found


def _weights(model: BaseModel) -> Iterator[tuple[str, str, Stored]]:
    """Yield component, path and place of all weights."""
    for name, root in model.view.components.items():
        for path, parameter in root.named_parameters(remove_duplicate=False):
            yield name, path, model.stored(parameter)
