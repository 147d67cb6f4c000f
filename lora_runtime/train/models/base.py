"""What training needs of a pipeline, whatever its kind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lora_runtime.train.batches import Use
from lora_runtime.train.loss import Schedule, schedule_of

__all__ = ["Model"]


class Model(ABC):
    """A pipeline: a denoiser, an autoencoder, text encoders. `texts` below are what `encode_texts` gave, rows first."""

    component: ClassVar[str]  # of the denoiser: "unet" or "transformer"
    has_words: ClassVar[bool]  # whether its pipeline knows words of several vectors (Textual Inversion)

    def __init__(self, pipe: Any) -> None:
        """Look at a pipeline of diffusers; TrainingError where its scheduler is none to train by."""
        self.pipe = pipe
        self.denoiser: nn.Module = getattr(pipe, self.component)
        self.autoencoder: Any = pipe.vae
        self.schedule: Schedule = schedule_of(pipe.scheduler)
        self.encoders: dict[str, nn.Module] = {
            name: part
            for name, part in sorted(pipe.components.items())
            if name.startswith("text_encoder") and isinstance(part, nn.Module)
        }

    @property
    def trainable_encoders(self) -> dict[str, nn.Module]:
        """The text encoders that are CLIPs; a T5 is left as it is, as in other trainers."""
        return {name: part for name, part in self.encoders.items() if type(part).__name__.startswith("CLIP")}

    @property
    def pixels(self) -> int:
        """The pixels of a picture on a side for each latent."""
        return int(2 ** (len(self.autoencoder.config.block_out_channels) - 1))

    @property
    def step(self) -> int:
        """What the sides of a picture must be multiples of."""
        return self.pixels

    @property
    def device(self) -> torch.device:
        """Where the denoiser is."""
        return next(self.denoiser.parameters()).device

    @torch.no_grad()
    def encode_picture(self, pixels: Tensor) -> Tensor:
        """Return mean and log-variance of a picture's latents, (2c, h, w) float32 on the CPU.

        `pixels`: (3, H, W) float32, −1 to 1. In float32, as SDXL's autoencoder overflows in float16.
        """
        autoencoder = self.autoencoder
        own = autoencoder.dtype
        if own != torch.float32:
            autoencoder.to(torch.float32)
        try:
            found = autoencoder.encode(pixels[None].to(autoencoder.device)).latent_dist.parameters
        finally:
            if own != torch.float32:
                autoencoder.to(own)
        moments: Tensor = found[0].float().cpu()
        return moments

    def latents(self, moments: Tensor, drawn: Tensor) -> Tensor:
        """Return latents (n, c, h, w) as the denoiser has them, from (n, 2c, h, w) and normal noise (n, c, h, w)."""
        mean, variance = moments.chunk(2, dim=1)
        sample = mean + (0.5 * variance.clamp(-30, 20)).exp() * drawn
        config = self.autoencoder.config
        scaled: Tensor = (sample - (config.get("shift_factor") or 0.0)) * config.scaling_factor
        return scaled

    @abstractmethod
    def encode_texts(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Return what the denoiser reads of captions, by the pipeline's own encode_prompt; gradients go through it."""

    @abstractmethod
    def predict(self, noisy: Tensor, times: Tensor, texts: dict[str, Tensor], uses: Sequence[Use]) -> Tensor:
        """Return the denoiser's answer (n, c, h, w) to noisy latents (n, c, h, w) at times (n,)."""
