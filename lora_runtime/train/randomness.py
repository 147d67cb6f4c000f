"""Everything that is drawn for a step, from the seed and the numbers of the step alone.

It is drawn on the CPU, for all rows of a batch whoever computes them. So a run that goes on needs no random state, two
processes draw what one would, and a seed means the same on every device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lora_runtime.train.loss import Schedule

__all__ = ["Drawn", "draw"]


@dataclass(frozen=True, eq=False)
class Drawn:
    """What is drawn for a batch: noise to sample latents and to be added, (n, c, h, w) each, and time steps (n,)."""

    sampling: Tensor
    noise: Tensor
    steps: Tensor

    def rows(self, which: Sequence[int]) -> Drawn:
        """Return those of some rows."""
        index = list(which)
        return Drawn(self.sampling[index], self.noise[index], self.steps[index])


def draw(
    shape: Sequence[int], schedule: Schedule, *, seed: int, step: int, part: int = 0, noise_offset: float = 0.0
) -> Drawn:
    """Return what is drawn for the `part`-th batch of a step, whose latents are `shape`, (n, c, h, w).

    `noise_offset` adds so much of one number for each channel to the noise (Guttenberg 2023), so that the mean
    brightness is learnt too.
    """
    digest = hashlib.sha256(f"{seed} {step} {part}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    sampling = torch.randn(*shape, generator=generator)
    noise = torch.randn(*shape, generator=generator)
    steps = schedule.draw(shape[0], generator)
    if noise_offset:
        noise = noise + noise_offset * torch.randn(*shape[:2], 1, 1, generator=generator)
    return Drawn(sampling, noise, steps)
