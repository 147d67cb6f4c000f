"""What is to be made small: pure functions of tensors.

    ε, v    noisy = √ᾱ·x + √(1−ᾱ)·n      target n, or v = √ᾱ·n − √(1−ᾱ)·x
    flow    noisy = (1−σ)·x + σ·n         target n − x

DDPM: Ho et al. 2020, arXiv:2006.11239. v: Salimans & Ho 2022, arXiv:2202.00512. Flow matching with the logit-normal
density of time steps: Esser et al. 2024, arXiv:2403.03206. min-SNR-γ: Hang et al. 2023, arXiv:2303.09556.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lora_runtime.errors import TrainingError

__all__ = ["Kind", "Schedule", "add_noise", "loss", "schedule_of", "snr_weights", "target"]

Kind = Literal["epsilon", "v_prediction", "flow"]
_KINDS: dict[str, Kind] = {"epsilon": "epsilon", "v_prediction": "v_prediction"}


@dataclass(frozen=True, eq=False)
class Schedule:
    """How much noise there is at each time step, float32 on the CPU.

    `levels`: ᾱ of each step for ε and v, σ for flow, (steps,). `times`: what the denoiser is told, (steps,).
    """

    kind: Kind
    levels: Tensor
    times: Tensor

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Return the numbers of `count` steps, int64: all alike for ε and v, logit-normal for flow."""
        if self.kind == "flow":
            share = torch.randn(count, generator=generator).sigmoid()
            return (share * len(self.levels)).long().clamp(max=len(self.levels) - 1)
        return torch.randint(len(self.levels), (count,), generator=generator)


def schedule_of(scheduler: Any) -> Schedule:
    """Return the schedule of a pipeline's scheduler, by its class and configuration.

    TrainingError where there is none to train by. A scheduler that has painted has other steps than it began with, so
    a new one is asked.
    """
    fresh = type(scheduler).from_config(scheduler.config)
    name = type(scheduler).__name__
    if name.startswith("FlowMatch"):
        return Schedule("flow", fresh.sigmas.float().cpu(), fresh.timesteps.float().cpu())
    kind = _KINDS.get(fresh.config.get("prediction_type", "epsilon"))
    if kind is None or not hasattr(fresh, "alphas_cumprod"):
        raise TrainingError(
            f"{name} (prediction_type {fresh.config.get('prediction_type')}): nothing is known of how to train by it; "
            "give the pipeline a DDIMScheduler or a FlowMatchEulerDiscreteScheduler of the same configuration"
        )
    levels = fresh.alphas_cumprod.float().cpu()
    return Schedule(kind, levels, torch.arange(len(levels)))


def add_noise(kind: Kind, latents: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
    """Return latents (n, c, h, w) with noise of the same shape, at the levels (n,) of a schedule."""
    level = _beside(levels, latents)
    if kind == "flow":
        return (1 - level) * latents + level * noise
    return level.sqrt() * latents + (1 - level).sqrt() * noise


def target(kind: Kind, latents: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
    """Return what the denoiser shall say of the same, (n, c, h, w)."""
    if kind == "epsilon":
        return noise
    if kind == "flow":
        return noise - latents
    level = _beside(levels, latents)
    return level.sqrt() * noise - (1 - level).sqrt() * latents


def snr_weights(kind: Kind, levels: Tensor, gamma: float) -> Tensor:
    """Return min-SNR-γ's weight of each row, (n,): min(SNR, γ)/SNR for ε, min(SNR, γ)/(SNR + 1) for v.

    1 for flow, whose density of steps does the same, and for γ = 0.
    """
    if kind == "flow" or gamma == 0:
        return torch.ones_like(levels)
    snr = levels / (1 - levels)
    if kind == "epsilon":
        return (gamma / snr).clamp(max=1)  # so a last step without signal, SNR 0, weighs 1
    return snr.clamp(max=gamma) / (snr + 1)


def loss(prediction: Tensor, wanted: Tensor, weights: Tensor) -> Tensor:
    """Return Σ weight · (mean squared error of the row), (), in float32, from (n, c, h, w) twice and (n,)."""
    errors = (prediction.float() - wanted.float()).square().flatten(1).mean(1)
    return (errors * weights).sum()


def _beside(levels: Tensor, latents: Tensor) -> Tensor:
    return levels.reshape(-1, *(1 for _ in latents.shape[1:]))
