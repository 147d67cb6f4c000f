"""Diffusion transformers in the real widths of the published ones, few blocks deep and one input wide.

Converters of checkpoints and adapters only cut and swap rows, some at fixed places: the rows are as many as in the
published models, and each has one value, which costs next to nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from lora_runtime.dialects import Dialect


def meta_model(name: str, **config: Any) -> nn.Module:
    """Return a model of diffusers in its default configuration, which is the published one's, but for `config`."""
    import diffusers

    with torch.device("meta"):
        made: nn.Module = getattr(diffusers, name)(**config)
    return made


def narrow_state(model: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """Return random weights and biases for the model: all rows, and of what else there is one value."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(parameter.shape[0], *(1 for _ in parameter.shape[1:]), generator=generator)
        for name, parameter in model.named_parameters()
        if name.endswith((".weight", ".bias"))
    }


def paths_of(state: Mapping[str, Tensor]) -> list[str]:
    """Return the modules that own a weight."""
    return [name.removesuffix(".weight") for name in state if name.endswith(".weight")]


def original_state(state: Mapping[str, Tensor], dialect: Dialect, layout: int = 0) -> dict[str, Tensor]:
    """Return the same weights as the original of that family keeps them, by its `layout`-th names."""
    paths = paths_of(state)
    names: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    for pieces, name in dialect.fusions(paths):
        names[pieces].append(name)
    fused = {piece for pieces in names for piece in pieces}
    swapped = set()
    for path, name, part in dialect.translations(paths):
        if path not in fused:
            names[path,].append(name)
        if part.swapped:
            swapped.add(path)
    for path in paths:
        if path not in fused and (path,) not in names:
            names[path,].append(path)
    found: dict[str, Tensor] = {}
    for pieces, known in names.items():
        for role in ("weight", "bias"):
            if f"{pieces[0]}.{role}" in state:
                rows = torch.cat([state[f"{piece}.{role}"] for piece in pieces])
                if pieces[0] in swapped:
                    rows = torch.cat(rows.chunk(2)[::-1])
                found[f"{known[min(layout, len(known) - 1)]}.{role}"] = rows
    return found


def pipeline(**components: nn.Module) -> Any:
    """Return what has the components of a pipeline and nothing else."""
    return SimpleNamespace(components=components)
