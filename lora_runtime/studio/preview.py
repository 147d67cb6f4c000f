"""The picture so far, decoded by the model's own VAE, as often as it costs little of the time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Previews"]

_SHARE = 4  # a preview comes after this many times what the last one took: they cost a fifth of the time at most


class Previews:
    """The previews of the pictures in one call of a pipeline, which are looked at again when that is due."""

    def __init__(self, pipe: Any, clock: Callable[[], float] = time.monotonic) -> None:
        self._pipe, self._clock = pipe, clock
        self._due = clock()

    def of(self, latents: Any, places: Sequence[int]) -> list[Image.Image] | None:
        """Return how pictures of a batch look, by their places in it; None where none are due, or none can be.

        Latents are (pictures, channels, height, width), as the VAE takes them: packed ones and those of films are not
        looked at.
        """
        started = self._clock()
        if started < self._due or not _decodable(self._pipe, latents):
            return None
        found = _decoded(self._pipe, latents[list(places)])
        ended = self._clock()
        self._due = ended + _SHARE * (ended - started)
        return found


def _decodable(pipe: Any, latents: Any) -> bool:
    import torch

    vae = getattr(pipe, "vae", None)
    config = getattr(vae, "config", {})
    if vae is None or latents.ndim != 4 or latents.shape[1] != config.get("latent_channels"):
        return False
    # Such a VAE overflows in half precision; the pipeline makes it float32 for its last picture only.
    return not (config.get("force_upcast") and vae.dtype == torch.float16)


def _decoded(pipe: Any, latents: Any) -> list[Image.Image]:
    import torch

    config = pipe.vae.config
    with torch.no_grad():
        scaled = latents / config.scaling_factor + (config.get("shift_factor") or 0.0)
        decoded = pipe.vae.decode(scaled.to(pipe.vae.dtype), return_dict=False)[0]
    found: list[Image.Image] = pipe.image_processor.postprocess(decoded, output_type="pil")
    return found
