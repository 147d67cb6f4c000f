"""A sampling: conditions are put together for calls of the denoiser, as many as there is memory for."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from comfy import model_management
from comfy.patcher_extension import WrappersMP, wrapped

Answers = dict[tuple[str, int], Tensor]


class Guider:
    """What asks the denoiser. `conds`: lists of conditions by name."""

    def __init__(self, patcher: Any, counts: dict[str, int]) -> None:
        """Make so many conditions of each name."""
        self.patcher = patcher
        self.conds = {name: [{"uuid": uuid.uuid4()} for _ in range(count)] for name, count in counts.items()}

    def sample(self, sigmas: Tensor, images: int, levels: Callable[[Tensor], Sequence[float]]) -> list[Answers]:
        """Return what came of each condition, call by call; `levels` are the noise levels that the sampler asks for."""
        model_management.load_model(self.patcher)
        model = self.patcher.model
        options = {
            "transformer_options": {
                "wrappers": {kind: dict(own) for kind, own in self.patcher.wrappers.items()},
                "sample_sigmas": sigmas,
            }
        }

        def sampler(
            guider: Any, sigmas: Tensor, extra_args: dict[str, Any], callback: Any, noise: Tensor
        ) -> list[Answers]:
            given = extra_args["model_options"]["transformer_options"]
            return [self._call(model, noise, level, given) for level in levels(sigmas)]

        noise = torch.zeros(images, 4, 8, 8)
        executor = wrapped(sampler, None, WrappersMP.SAMPLER_SAMPLE, options["transformer_options"])
        with torch.inference_mode():
            found: list[Answers] = executor.execute(self, sigmas, {"model_options": options}, None, noise)
        return found

    def _call(self, model: Any, x: Tensor, level: float, options: dict[str, Any]) -> Answers:
        to_run = [
            (name, number, condition["uuid"])
            for name, own in self.conds.items()
            for number, condition in enumerate(own)
        ]
        found: Answers = {}
        while to_run:
            chosen = [to_run.pop() for _ in range(min(len(to_run), model_management.memory.conditions_a_call))]
            given = {**options, "uuids": [one[2] for one in chosen], "sigmas": torch.full((len(x),), level)}
            t = torch.cat([given["sigmas"]] * len(chosen))
            rows = model.apply_model(torch.cat([x] * len(chosen)), t, transformer_options=given)
            for (name, number, _), own in zip(chosen, rows.chunk(len(chosen)), strict=True):
                found[name, number] = own
        return found
