"""SD1, SD2 and SDXL: a UNet that predicts the noise, or v."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from lora_runtime.train.batches import Use
from lora_runtime.train.models.base import Model

__all__ = ["StableDiffusion", "StableDiffusionXL"]


class StableDiffusion(Model):
    """SD1 and SD2: one text encoder, whose states are all that the UNet reads."""

    component: ClassVar[str] = "unet"
    has_words: ClassVar[bool] = True

    def encode_texts(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Return states, (n, 77, width)."""
        states, _ = self.pipe.encode_prompt(list(captions), self.device, 1, False)
        return {"states": states}

    def predict(self, noisy: Tensor, times: Tensor, texts: dict[str, Tensor], uses: Sequence[Use]) -> Tensor:
        """Return ε or v, (n, 4, h, w)."""
        found: Tensor = self.denoiser(noisy, times, texts["states"], return_dict=False)[0]
        return found


class StableDiffusionXL(Model):
    """SDXL: two text encoders, the second's pooled states, and six numbers about size and crop."""

    component: ClassVar[str] = "unet"
    has_words: ClassVar[bool] = True

    def encode_texts(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Return states (n, 77, both widths) and pooled (n, the second's width)."""
        prompts = list(captions)
        states, _, pooled, _ = self.pipe.encode_prompt(
            prompts, device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return {"states": states, "pooled": pooled}

    def predict(self, noisy: Tensor, times: Tensor, texts: dict[str, Tensor], uses: Sequence[Use]) -> Tensor:
        """Return ε or v, (n, 4, h, w)."""
        about = torch.tensor([_about(use) for use in uses], dtype=noisy.dtype, device=noisy.device)
        more = {"text_embeds": texts["pooled"], "time_ids": about}
        found: Tensor = self.denoiser(noisy, times, texts["states"], added_cond_kwargs=more, return_dict=False)[0]
        return found


def _about(use: Use) -> tuple[int, ...]:
    """Return height and width of the picture as it was, top and left of its crop, height and width as it is shown."""
    (width, height), (shown_width, shown_height) = use.picture.size, use.placed.bucket
    left, top = use.placed.crop
    if use.flipped:
        left = use.placed.resized[0] - shown_width - left
    return (height, width, top, left, shown_height, shown_width)
