"""FourierFT: delta = scaling · the real part of the inverse Fourier transform of a few learnt frequencies.

Gao et al. 2024, arXiv:2405.03003. Which frequencies they are is drawn from a seed in the configuration, for the size
of the weight, with torch's generator for the CPU as PEFT draws them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from lora_runtime.adapters.base import Algorithm, Dense, Group
from lora_runtime.key_endings import ENDINGS

__all__ = ["ALGORITHM", "Frequencies", "build", "drawn", "settings"]


@lru_cache(64)
def drawn(size: int, count: int, seed: int) -> Tensor:
    """Return `count` different places of a flattened matrix of that size, int64, on the CPU; nobody writes into it.

    All places have to be drawn for it: 2.6 s for one of Flux's largest matrices, of which a model has dozens.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randperm(size, generator=generator, device="cpu")[:count].clone()  # a view would keep the rest


@dataclass(frozen=True, eq=False)
class Frequencies(Dense):
    """A few frequencies of a change of a matrix."""

    algorithm: ClassVar[str] = "fourierft"

    spectrum: Tensor  # (n,)
    seed: int
    keys: tuple[str, ...]
    scale: float
    places: Tensor | None = None  # (n,) int64, in the flattened matrix; None until its size is known

    def misfit(self, shape: torch.Size) -> str | None:
        """Return None for a matrix that has as many elements at least."""
        count = self.spectrum.numel()
        if len(shape) == 2 and math.prod(shape) >= count:
            return None
        return f"made for a matrix of at least {count} elements, the weight is {tuple(shape)}"

    def for_shape(self, shape: torch.Size) -> Frequencies:
        """Return these frequencies with their places."""
        return replace(self, places=self._drawn(shape))

    def _drawn(self, shape: torch.Size) -> Tensor:
        count = self.spectrum.numel()
        if self.spectrum.is_meta:
            return torch.empty(count, dtype=torch.int64, device="meta")
        return drawn(math.prod(shape), count, self.seed)

    def change(self, weight: Tensor, cast: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the change that the frequencies make."""
        spread = self.spread(weight.shape, cast)
        changed: Tensor = torch.fft.ifft2(spread).real * self.scale
        return changed

    def spread(self, shape: torch.Size, cast: Callable[[Tensor], Tensor]) -> Tensor:
        """Return a matrix of the weight's shape with the learnt numbers at their places, 0 elsewhere."""
        spectrum = cast(self.spectrum)
        places = (self._drawn(shape) if self.places is None else self.places).to(spectrum.device)
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
