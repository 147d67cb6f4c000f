"""A picture's pixels as a model's autoencoder takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lora_runtime.errors import TrainingError
from lora_runtime.train.buckets import Placed
from lora_runtime.train.folders import Picture

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["read_pixels"]

_WHITE = (255, 255, 255, 255)


def read_pixels(picture: Picture, placed: Placed, flipped: bool) -> Tensor:
    """Return the pixels at the size of the bucket, float32 (3, height, width) from -1 to 1.

    As it is seen: turned as its EXIF says, what is transparent over white. Scaled down by Lanczos' filter, as wide as
    the scale asks for, so that nothing aliases; scaled up by the bicubic one, which puts fewer rings around edges.
    TrainingError where the file can no longer be read.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(picture.path) as opened:
            # Transparency first: filtered after, the colours of what cannot be seen would bleed into the rims.
            image = _opaque(ImageOps.exif_transpose(opened))
    except Exception as error:  # decoders raise whatever a broken file makes of them
        raise TrainingError(f"{picture.path}: the picture can no longer be read ({error})") from error
    if image.size != placed.resized:
        smaller = placed.resized[0] * placed.resized[1] < image.size[0] * image.size[1]
        image = image.resize(placed.resized, Image.Resampling.LANCZOS if smaller else Image.Resampling.BICUBIC)
    (left, top), (width, height) = placed.crop, placed.bucket
    image = image.crop((left, top, left + width, top + height))
    if flipped:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = torch.from_numpy(np.array(image))  # (height, width, 3), uint8
    return pixels.permute(2, 0, 1).to(torch.float32).div_(127.5).sub_(1).contiguous()


def _opaque(image: Image.Image) -> Image.Image:
    """Return a picture in RGB, over white where it is transparent."""
    from PIL import Image

    if image.mode.startswith("I"):  # 16 bits of gray, which Pillow's own conversion would cut off at 255
        gray = np.asarray(image).astype(np.float32) / 257
        return Image.fromarray(gray.round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, _WHITE), image).convert("RGB")
    return image.convert("RGB")
