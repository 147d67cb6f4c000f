"""What a person asks for: one record, checked where it is made."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lora_runtime.studio.faults import StudioError
from lora_runtime.studio.samplers import OWN, SAMPLERS

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["MAX_BATCH", "MOST_AT_ONCE", "MOST_PICTURES", "MOST_SIDE", "MOST_STEPS", "SEEDS", "Settings"]

MOST_STEPS = 150
MOST_PICTURES = 16
MOST_SIDE = 2048  # pixels
MAX_BATCH = 4  # pictures in one call of a model
MOST_AT_ONCE = 32  # people whose pictures wait or are painted; others wait for these
_STEP = 8  # pixels: a side is a multiple of what the models' decoders make of one place
_LONGEST = 20_000  # characters of a prompt
SEEDS = 1 << 32


@dataclass(frozen=True)
class Settings:
    """A picture, or several with seeds that follow each other; StudioError for what cannot be.

    `source` is the picture that img2img begins with, `strength` how much of it is painted anew, from 0 to 1.
    """

    prompt: str = ""
    negative: str = ""
    width: int = 512
    height: int = 512
    steps: int = 20
    sampler: str = OWN
    guidance: float = 7.0
    seed: int = 0
    pictures: int = 1
    source: Image.Image | None = field(default=None, compare=False)
    strength: float = 0.75

    def __post_init__(self) -> None:
        for name in ("prompt", "negative"):
            if len(getattr(self, name)) > _LONGEST:
                raise StudioError(f"the {name} has more than {_LONGEST:,} characters: write a shorter one")
        for name, least, most in (
            ("width", _STEP, MOST_SIDE),
            ("height", _STEP, MOST_SIDE),
            ("steps", 1, MOST_STEPS),
            ("seed", 0, SEEDS - 1),
            ("pictures", 1, MOST_PICTURES),
        ):
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise StudioError(f"{name} is {value!r}: give a whole number from {least} to {most}")
        for name in ("width", "height"):
            if (value := getattr(self, name)) % _STEP:
                raise StudioError(f"{name} is {value}: give a multiple of {_STEP}")
        for name, highest in (("guidance", 100.0), ("strength", 1.0)):
            value = getattr(self, name)
            if not math.isfinite(value) or not 0 <= value <= highest:
                raise StudioError(f"{name} is {value}: give a number from 0 to {highest:g}")
        if self.sampler not in SAMPLERS:
            raise StudioError(f"there is no sampler {self.sampler!r}: choose one of {', '.join(SAMPLERS)}")
