"""Where in a picture an adapter acts: a box with soft edges, or a mask from a file, at any layer's resolution."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PureWindowsPath

import torch
from torch import Tensor
from torch.nn import functional

from lora_runtime.errors import RegionError
from lora_runtime.prompt.strength import Region

__all__ = ["Place", "find_place", "place_of"]

_LARGEST_MASK = 64 << 20  # bytes of a file, and pixels of its picture


@dataclass(frozen=True, slots=True)
class Place:
    """A region that is ready for use. Two are equal where they mean the same places, whatever the file's name."""

    box: tuple[float, float, float, float] | None = None
    soft: float = 0.0
    content: str = ""  # the hash of the mask's pixels
    pixels: Tensor | None = field(default=None, compare=False, repr=False)  # (height, width), 0 to 1

    @property
    def whole(self) -> bool:
        """Whether it is the whole picture, which is no region."""
        return self.box in (None, (0.0, 0.0, 1.0, 1.0)) and _is_white(self)

    def mask(self, height: int, width: int) -> Tensor:
        """Return how far each of height × width cells lies inside: (height, width), float32, 0 to 1."""
        total = torch.ones(height, width)
        if self.pixels is not None:
            total *= functional.interpolate(self.pixels[None, None], (height, width), mode="area")[0, 0]
        if self.box is not None:
            total *= _box(self.box, self.soft, height, width)
        return total


@lru_cache(maxsize=64)  # each module of a model asks; two places are equal where their content is
def _is_white(place: Place) -> bool:
    return place.pixels is None or bool((place.pixels >= 1).all())


def find_place(region: Region, folders: Sequence[str | os.PathLike[str]]) -> Place:
    """Return the place that a region means. Its mask is a file in one of the folders, whatever a prompt says.

    Prompts are pasted from other people's pictures, and a path may reach for another computer. RegionError where there
    is no such file, or no picture in it.
    """
    if region.mask is None:
        return place_of(region)
    if PureWindowsPath(region.mask).anchor or Path(region.mask).anchor or ".." in PureWindowsPath(region.mask).parts:
        raise RegionError(f"the mask {region.mask} is not used: write its path within the folder of the LoRA files")
    for folder in folders:
        try:
            status = Path(folder, region.mask).stat()
        except (OSError, ValueError):  # not there, or a name that no file can have
            continue
        return _remembered(region, Path(folder), status.st_mtime_ns, status.st_size)
    raise RegionError(f"there is no mask {region.mask} in {', '.join(map(str, folders))}")


@lru_cache(maxsize=8)  # a batch asks for the same mask again and again
def _remembered(region: Region, folder: Path, *stamp: int) -> Place:
    return place_of(region, folder)


def place_of(region: Region, folder: str | os.PathLike[str] = ".") -> Place:
    """Return the place that a region means; a mask's path is relative to `folder`.

    RegionError where the mask cannot be read. Masks are grey pictures, white inside; any format that Pillow reads.
    """
    if region.mask is None:
        return Place(region.box, region.soft)
    path = Path(folder, region.mask)
    try:
        from PIL import Image
    except ImportError as error:
        raise RegionError(f"a mask needs Pillow to be read ({error}): pip install pillow") from error
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe could wait for ever
            raise RegionError(f"the mask {path} cannot be used: it is no plain file")
        if status.st_size > _LARGEST_MASK:
            raise RegionError(f"the mask {path} is larger than {_LARGEST_MASK >> 20} MB")
        with Image.open(path) as picture:
            width, height = picture.size
            if width * height > _LARGEST_MASK:
                raise RegionError(f"the mask {path} has {width} × {height} pixels, which is too many")
            grey = picture.convert("L")
    except Image.DecompressionBombError as error:
        raise RegionError(f"the mask {path} has too many pixels: {error}") from error
    except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises for pictures that it cannot read
        why = error.strerror if isinstance(error, OSError) and error.strerror else "it is no picture that can be read"
        raise RegionError(f"the mask {path} cannot be used: {why}") from error
    raw = grey.tobytes()
    pixels = torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(grey.height, grey.width) / 255.0
    content = hashlib.sha256(repr(grey.size).encode() + raw).hexdigest()
    return Place(region.box, region.soft, content, pixels)


def _box(box: tuple[float, float, float, float], soft: float, height: int, width: int) -> Tensor:
    """Return how far each cell lies inside a box; at its edges, unless they are the picture's, it fades over `soft`.

    An edge is at least one cell wide, which for a cell that it cuts is the share of the cell inside.
    """
    left, top, right, bottom = box
    shorter = min(height, width)
    x = (torch.arange(width) + 0.5) / width
    y = (torch.arange(height) + 0.5) / height
    across = _between(x, left, right, width / shorter, max(soft, 1 / shorter))
    down = _between(y, top, bottom, height / shorter, max(soft, 1 / shorter))
    return down[:, None] * across[None, :]


def _between(at: Tensor, start: float, stop: float, length: float, soft: float) -> Tensor:
    """Return 0 to 1 for each position between two edges; `length` is that of the side, in shorter sides."""
    inside = torch.ones_like(at)
    if start > 0:
        inside = inside * ((at - start) * length / soft + 0.5).clamp(0, 1)
    if stop < 1:
        inside = inside * ((stop - at) * length / soft + 0.5).clamp(0, 1)
    return inside
