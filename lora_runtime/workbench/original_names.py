"""A model in diffusers' layout as its original has it: the same weights under the names of the original's code.

Names and shapes are all there is; they come from the families' records, forward, as everywhere. What the original has
in one weight is one here too, the rows one below the other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lora_runtime.dialects import DENOISERS, DIALECTS
from lora_runtime.families.unet import UNET_NAMES
from lora_runtime.pipelines import view
from lora_runtime.targets import Target, Targets
from lora_runtime.workbench.base_model import BaseModel, Model

__all__ = ["Outline", "in_original_names", "original_names"]


class Outline(Model):
    """A model of which only names and shapes are known."""

    def __init__(self, title: str, components: Mapping[str, nn.Module]) -> None:
        """`title`: what people call it."""
        self._model = _Pipeline(dict(components))  # targets refer to its modules weakly
        looked_at = view(self._model)
        super().__init__(looked_at, Targets(looked_at))
        self._title = title

    def __str__(self) -> str:
        """Return the title."""
        return self._title

    def sizes(self, place: Target, name: str) -> torch.Size | None:
        """Return the shape."""
        own = place.module._parameters.get(name)
        return None if own is None else own.shape

    def value(self, place: Target, name: str) -> Tensor | None:
        """Return None: nobody has the values."""
        return None


class _Pipeline:
    """Enough of a pipeline to be looked at."""

    def __init__(self, components: dict[str, nn.Module]) -> None:
        self.components = components


def in_original_names(model: BaseModel) -> Model:
    """Return a model with its denoisers in the original's names; a checkpoint has these, a folder diffusers'."""
    if not model.path.is_dir():
        return model
    found = {
        name: original_names(root) if name.startswith(DENOISERS) and "encoder" not in name else root
        for name, root in model.view.components.items()
    }
    return Outline(str(model), found)


def original_names(root: nn.Module) -> nn.Module:
    """Return the weights of a denoiser of diffusers under the original's names, on the meta device.

    Where a family has several originals, they are those of the first in its record. What has no other name keeps its
    own.
    """
    shapes: defaultdict[str, dict[str, torch.Size]] = defaultdict(dict)  # module → parameter → shape
    for name, parameter in root.named_parameters():
        path, _, role = name.rpartition(".")
        shapes[path][role] = parameter.shape
    tree: dict[str, Any] = {}
    for pieces, known in _names([*shapes]).items():
        branch = tree
        for level in filter(None, known.split(".")):
            branch = branch.setdefault(level, {})
        for role, first in shapes[pieces[0]].items():
            rows = sum(shapes[piece][role][0] for piece in pieces) if first else 0
            branch[role] = torch.Size((rows, *first[1:])) if first else first
    return _grown(tree)


def _names(paths: Sequence[str]) -> Mapping[tuple[str, ...], str]:
    """Return the original's name of each module, or of several together."""
    names: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    for dialect in DIALECTS:
        for pieces, name in dialect.fusions(paths):
            names[pieces].append(name)
    # Some files have a part of what the original has in one (q, k and v without the MLP): no weight of the model.
    for few in [one for one in names if any({*one} < {*other} for other in names)]:
        del names[few]
    fused = {piece for pieces in names for piece in pieces}
    for dialect in DIALECTS:
        for path, name, part in dialect.translations(paths):
            if path not in fused and part.count == 1:
                names[path,].append(name)
    for path, name in UNET_NAMES.spellings(paths):
        names[path,].append(name)
    for path in paths:
        if path not in fused:
            names.setdefault((path,), [path])
    return {pieces: known[0] for pieces, known in names.items()}


def _grown(tree: Mapping[str, Any]) -> nn.Module:
    # LDM's models are told apart by what is a list of modules.
    module = nn.ModuleList() if tree and all(name.isdigit() for name in tree) else nn.Module()
    for name, branch in tree.items():
        if isinstance(branch, dict):
            module._modules[name] = _grown(branch)
        else:
            module._parameters[name] = nn.Parameter(torch.empty(branch, device="meta"), requires_grad=False)
    return module
