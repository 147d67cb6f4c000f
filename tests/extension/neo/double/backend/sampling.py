"""One step: conditions are put together for calls of the denoiser, the last ones first."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Condition:
    """The numbers of a condition, (pictures, …)."""

    def __init__(self, cond: Tensor) -> None:
        self.cond = cond

    def process_cond(self, batch_size: int, device: Any, **_: Any) -> Condition:
        return self

    def can_concat(self, other: Condition) -> bool:
        return self.cond.shape == other.cond.shape

    def concat(self, others: list[Condition]) -> Tensor:
        return torch.cat([self.cond, *(other.cond for other in others)])


def conditions(tensors: list[Tensor]) -> list[dict[str, Any]]:
    """Return a condition for each; of each all pictures."""
    return [{"model_conds": {"c_crossattn": Condition(tensor)}, "strength": 1.0} for tensor in tensors]


def sampling_function(
    unet: Any, x: Tensor, sigma: Tensor, cond: list[Any], uncond: list[Any], a_call: int
) -> dict[tuple[str, int], Tensor]:
    """Return what came of each condition: by its side and the number of its part. `a_call`: conditions in one call."""
    model, options = unet.model, unet.model_options
    rest: tuple[Any, ...] = (4.0, options, 1)
    for modifier in options.get("conditioning_modifiers", []):
        model, x, sigma, uncond, cond, *rest = modifier(model, x, sigma, uncond, cond, *rest)
    to_run = [(condition, 0, part) for part, condition in enumerate(cond)]
    to_run += [(condition, 1, 0) for condition in uncond]
    found: dict[tuple[str, int], Tensor] = {}
    while to_run:
        numbers = set(to_run[0][0]["model_conds"])
        fit = [
            index
            for index, (other, _, _) in enumerate(to_run)
            if set(other["model_conds"]) == numbers
            and all(to_run[0][0]["model_conds"][name].can_concat(other["model_conds"][name]) for name in numbers)
        ]
        chosen = [to_run.pop(index) for index in reversed(fit[-a_call:])]
        processed = [
            {name: value.process_cond(len(x), x.device, area=None) for name, value in condition["model_conds"].items()}
            for condition, _, _ in chosen
        ]
        joined = {name: processed[0][name].concat([other[name] for other in processed[1:]]) for name in numbers}
        sides = [side for _, side, _ in chosen]
        given = {"transformer_options": {"cond_or_uncond": sides}, **joined}
        out = model.apply_model(torch.cat([x] * len(chosen)), torch.cat([sigma] * len(chosen)), **given)
        for (_, side, part), rows in zip(chosen, out.chunk(len(chosen)), strict=True):
            found["negative" if side else "positive", part] = rows
    return found
