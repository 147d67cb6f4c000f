"""FourierFT: delta = scaling · the real part of the inverse Fourier transform of a few learnt frequencies.

Gao et al. 2024, arXiv:2405.03003. Which frequencies they are is drawn from a seed in the configuration, for the size
of the weight, with torch's generator for the CPU as PEFT draws them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lora_runtime.adapters.base import Algorithm, Dense, Group
from lora_runtime.key_endings import ENDINGS

__all__ = ["ALGORITHM", "Frequencies", "build", "drawn", "settings"]


def drawn(shape: torch.Size, count: int, seed: int) -> Tensor:
    """Return `count` different places of a flattened matrix of that shape, int64, on the CPU."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randperm(math.prod(shape), generator=generator, device="cpu")[:count]


@dataclass(frozen=True, eq=False)
class Frequencies(Dense):
    """A few frequencies of a change of a matrix."""

    algorithm: ClassVar[str] = "fourierft"

    spectrum: Tensor  # (n,)
    seed: int
    keys: tuple[str, ...]
    scale: float

    def misfit(self, shape: torch.Size) -> str | None:
        """Return None for a matrix that has as many elements at least."""
        count = self.spectrum.numel()
        if len(shape) == 2 and math.prod(shape) >= count:
            return None
        return f"made for a matrix of at least {count} elements, the weight is {tuple(shape)}"

    def change(self, weight: Tensor, cast: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the change that the frequencies make."""
        spread = self.spread(weight.shape, cast)
        changed: Tensor = torch.fft.ifft2(spread).real * self.scale
        return changed

    def spread(self, shape: torch.Size, cast: Callable[[Tensor], Tensor]) -> Tensor:
        """Return a matrix of the weight's shape with the learnt numbers at their places, 0 elsewhere."""
        spectrum = cast(self.spectrum)
        places = drawn(shape, spectrum.numel(), self.seed).to(spectrum.device)
        return spectrum.new_zeros(math.prod(shape)).index_copy_(0, places, spectrum).reshape(shape)


def settings(group: Group) -> tuple[Tensor, int, float]:
    """Return the spectrum, the seed of its places and its scale; ValueError says what is missing or contradictory."""
    (spectrum,) = group.need("spectrum")
    seed, scaling = group.options.get("random_loc_seed"), group.options.get("scaling")
    if seed is None or scaling is None:
        raise ValueError("only the adapter_config.json, which is not beside it, tells its scale and its places")
    if spectrum.ndim != 1 or spectrum.numel() == 0:
        raise ValueError(f"the spectrum is no vector: {group.shapes()}")
    return spectrum, seed, float(scaling)


def build(group: Group) -> list[Frequencies]:
    """Return the adapter of one module; ValueError says what is missing or contradictory."""
    spectrum, seed, scale = settings(group)
    return [Frequencies(spectrum, seed, group.keys, scale)]


ALGORITHM = Algorithm("fourierft", ENDINGS["fourierft"], build, shared=())
