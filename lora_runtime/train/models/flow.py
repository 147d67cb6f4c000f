"""SD3 and Flux: a transformer that predicts the velocity from picture to noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from lora_runtime.train.batches import Use
from lora_runtime.train.models.base import Model

__all__ = ["Flux", "StableDiffusion3"]

_TIMES = 1000  # Flux is told σ itself, where schedulers count 1000 steps


class StableDiffusion3(Model):
    """SD3 and SD3.5: two CLIPs and a T5, each of which may be absent."""

    component: ClassVar[str] = "transformer"
    has_words: ClassVar[bool] = False

    @property
    def step(self) -> int:
        """The transformer reads patches of latents."""
        return self.pixels * int(self.denoiser.config.patch_size)  # type: ignore[union-attr, arg-type]

    def encode_texts(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Return states (n, tokens, width) and pooled (n, both CLIPs' widths)."""
        prompts = list(captions)
        states, _, pooled, _ = self.pipe.encode_prompt(
            prompts, None, None, device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return {"states": states, "pooled": pooled}

    def predict(self, noisy: Tensor, times: Tensor, texts: dict[str, Tensor], uses: Sequence[Use]) -> Tensor:
        """Return the velocity, (n, 16, h, w)."""
        found: Tensor = self.denoiser(
            hidden_states=noisy,
            timestep=times,
            encoder_hidden_states=texts["states"],
            pooled_projections=texts["pooled"],
            return_dict=False,
        )[0]
        return found


class Flux(Model):
    """Flux.1: a CLIP's pooled states and a T5's; the latents of 2 × 2 places are one token.

    Flux.1-dev was distilled at several guidance scales and is told one; 1 is what trainers give it.
    """

    component: ClassVar[str] = "transformer"
    has_words: ClassVar[bool] = False

    @property
    def step(self) -> int:
        """Two latents on a side are one token."""
        return 2 * self.pixels

    def encode_texts(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Return states (n, tokens, width) and pooled (n, width)."""
        states, pooled, _ = self.pipe.encode_prompt(list(captions), None, device=self.device, num_images_per_prompt=1)
        return {"states": states, "pooled": pooled}

    def predict(self, noisy: Tensor, times: Tensor, texts: dict[str, Tensor], uses: Sequence[Use]) -> Tensor:
        """Return the velocity, (n, 16, h, w)."""
        count, channels, height, width = noisy.shape
        packed = self.pipe._pack_latents(noisy, count, channels, height, width)
        places = self.pipe._prepare_latent_image_ids(count, height // 2, width // 2, noisy.device, noisy.dtype)
        states = texts["states"]
        guided = self.denoiser.config.guidance_embeds  # type: ignore[union-attr]
        found: Tensor = self.denoiser(
            hidden_states=packed,
            timestep=times / _TIMES,
            guidance=torch.ones(count, device=noisy.device) if guided else None,
            pooled_projections=texts["pooled"],
            encoder_hidden_states=states,
            txt_ids=torch.zeros(states.shape[1], 3, device=noisy.device, dtype=noisy.dtype),
            img_ids=places,
            return_dict=False,
        )[0]
        # (n, h/2 · w/2, 4c) back to (n, c, h, w)
        apart = found.reshape(count, height // 2, width // 2, channels, 2, 2)
        return apart.permute(0, 3, 1, 4, 2, 5).reshape(noisy.shape)
