"""Sizes that pictures of other shapes are scaled and cut to, so that those of a batch have one size.

The rule is that of kohya's trainer. Without `bucket_no_upscale`: the sizes are those of whole steps whose area is at
most the resolution's, each side as large as the other one leaves room for; a picture has the one whose ratio of width
to height is nearest to its own, is scaled until it just covers it, and loses the same from both ends of what is too
long. With it, no picture is enlarged: those above the resolution's area are scaled down to it, and each is cut to whole
steps.

Sizes are (width, height) in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lora_runtime.errors import TrainingError
from lora_runtime.train.config import Config

__all__ = ["Placed", "Size", "bucket_of", "bucket_sizes", "place"]

Size = tuple[int, int]


@dataclass(frozen=True)
class Placed:
    """How a picture comes to the size of its bucket: scaled to `resized`, then cut to `bucket` from `crop` on.

    `crop` is (left, top). `bucket` is never larger than `resized`.
    """

    bucket: Size
    resized: Size
    crop: Size


def bucket_sizes(resolution: Size, least: int, most: int, step: int) -> list[Size]:
    """Return the sizes of the buckets, from narrow to wide.

    Their area is at most the resolution's, and their sides are multiples of `step` from `least` to `most`, both rounded
    to steps outwards. A `least` above the smaller side of the resolution means that side, and so does a `most`
    below the larger one.
    """
    least = min(least, *resolution) // step * step or step
    most = -(-max(most, *resolution) // step) * step
    area = resolution[0] * resolution[1]
    side = math.isqrt(area) // step * step
    sizes = {(side, side)}
    for width in range(least, most + 1, step):
        height = min(most, area // width // step * step)
        if height >= least:
            sizes |= {(width, height), (height, width)}
    return sorted(sizes)


def bucket_of(size: Size, sizes: Sequence[Size], *, upscale: bool = True, area: int = 0, step: int = 64) -> Placed:
    """Return where a picture of `size` is placed.

    With `upscale` in one of `sizes`. Else scaled down to at most about `area` pixels and cut to multiples of `step`;
    TrainingError where it has not as many pixels as one step on a side.
    """
    bucket, resized = _nearest(size, sizes) if upscale else _cut(size, area, step)
    left, top = ((long - short) // 2 for long, short in zip(resized, bucket, strict=True))
    return Placed(bucket, resized, (left, top))


def place(size: Size, config: Config) -> Placed:
    """Return where a picture of `size` is placed by the numbers of a run."""
    if not config.enable_bucket:
        return bucket_of(size, [config.resolution])
    steps = config.bucket_reso_steps
    if config.bucket_no_upscale:
        return bucket_of(size, (), upscale=False, area=config.resolution[0] * config.resolution[1], step=steps)
    return bucket_of(size, bucket_sizes(config.resolution, config.min_bucket_reso, config.max_bucket_reso, steps))


def _nearest(size: Size, sizes: Sequence[Size]) -> tuple[Size, Size]:
    """Return the bucket whose ratio is nearest, and the size at which a picture just covers it."""
    width, height = size
    ratio = width / height
    # A picture that has a bucket's size keeps it, though another bucket of the same ratio may come first.
    bucket = size if size in sizes else min(sizes, key=lambda known: abs(known[0] / known[1] - ratio))
    scale = bucket[1] / height if ratio > bucket[0] / bucket[1] else bucket[0] / width
    return bucket, (max(bucket[0], _rounded(width * scale)), max(bucket[1], _rounded(height * scale)))


def _cut(size: Size, area: int, step: int) -> tuple[Size, Size]:
    """Return the largest size of whole steps in a picture, and its size when it is no larger than `area`.

    A picture that is scaled down has one side of whole steps: that which keeps the ratio better when the other is cut.
    """
    width, height = size
    if width * height > area:
        ratio = width / height
        by_width = math.sqrt(area * ratio)
        wide = _rounded(by_width) // step * step
        high = _rounded(area / by_width) // step * step
        wide_cut = _rounded(wide / ratio) // step * step
        high_cut = _rounded(high * ratio) // step * step
        of_width = abs(wide / wide_cut - ratio) if wide_cut else math.inf
        of_height = abs(high_cut / high - ratio) if high else math.inf
        if of_width < of_height:
            width, height = wide, _rounded(wide / ratio)
        else:
            width, height = _rounded(high * ratio), high
    bucket = (width // step * step, height // step * step)
    if 0 in bucket:
        raise TrainingError(
            f"{size[0]} × {size[1]} is too small or too long for bucket_no_upscale: a side would be below "
            f"bucket_reso_steps = {step}; allow smaller steps, or give a larger picture"
        )
    return bucket, (width, height)


def _rounded(value: float) -> int:
    return int(value + 0.5)
