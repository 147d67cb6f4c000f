"""What the denoiser reads of pictures and captions: encoded once where no text encoder is trained, anew otherwise."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn

from lora_runtime.train.batches import Use
from lora_runtime.train.config import Config
from lora_runtime.train.encoded import Encoded, key_of
from lora_runtime.train.models import Model
from lora_runtime.train.pixels import read_pixels

__all__ = ["Encoding"]

_FOLDER = "encoded"  # in config.output_dir


class Encoding:
    """The latents of pictures, and the states of captions."""

    def __init__(self, model: Model, config: Config, *, texts_train: bool) -> None:
        """`texts_train`: whether what the text encoders say changes from step to step."""
        self._model, self._texts_train = model, texts_train
        # Each shuffle of a caption is another text, of which few come again.
        self._keeps_texts = not (texts_train or (config.shuffle_caption and not config.cache_latents_to_disk))
        self._flips = (False, True) if config.flip_aug else (False,)
        on_disk = config.cache_latents_to_disk
        self.kept = Encoded(config.output_dir / _FOLDER if on_disk else None)
        # By content, as folders of models are trained further under their old names.
        self._pictures_id = _content(model.autoencoder) if on_disk else ""
        self._texts_id = _content(*model.encoders.values()) if on_disk and self._keeps_texts else ""

    def prepare(self, uses: Sequence[Use]) -> None:
        """Encode all pictures of an epoch, so that the autoencoder is needed no more."""
        for use in {(use.picture, use.placed): use for use in uses}.values():
            for flipped in self._flips:
                self.moments(replace(use, flipped=flipped))

    def moments(self, use: Use) -> Tensor:
        """Return mean and log-variance of a picture's latents, (2c, h, w) float32 on the CPU."""

        def compute() -> dict[str, Tensor]:
            return {"moments": self._model.encode_picture(read_pixels(use.picture, use.placed, use.flipped))}

        return self.kept.get(key_of(use.picture, use.placed, use.flipped, self._pictures_id), compute)["moments"]

    def texts(self, uses: Sequence[Use], device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return what the denoiser reads of these captions, rows first."""
        if not self._keeps_texts:
            with nullcontext() if self._texts_train else torch.no_grad():
                return {name: rows.to(dtype) for name, rows in self._model.encode_texts(_captions(uses)).items()}
        found = [self._text(caption) for caption in _captions(uses)]
        return {name: torch.cat([each[name] for each in found]).to(device, dtype) for name in found[0]}

    def _text(self, caption: str) -> dict[str, Tensor]:
        @torch.no_grad()
        def compute() -> dict[str, Tensor]:
            return self._model.encode_texts([caption])

        key = hashlib.sha256(f"text {self._texts_id} {caption}".encode()).hexdigest()
        return self.kept.get(key, compute)


def _captions(uses: Sequence[Use]) -> list[str]:
    return [use.caption for use in uses]


def _content(*modules: nn.Module) -> str:
    """Return a hash of all weights of some modules."""
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
