"""C3A: a delta of circulant blocks, each told by its first row, divided by the number of inputs.

Chen et al. 2024, arXiv:2407.19342.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lora_runtime.adapters.base import Algorithm, Cast, Dense, Group
from lora_runtime.adapters.forms import Form, Map
from lora_runtime.key_endings import ENDINGS

__all__ = ["ALGORITHM", "Circulant", "build"]


@dataclass(frozen=True, eq=False)
class Circulant(Dense):
    """Circulant blocks: Δ[m·b + p, n·b + q] = kernel[m, n, (q − p) mod b] / inputs."""

    algorithm: ClassVar[str] = "c3a"

    kernel: Tensor  # (out / b, in / b, b)
    keys: tuple[str, ...]

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """The shape of the weight that it was trained on."""
        rows, columns, size = self.kernel.shape
        return (rows * size, columns * size)

    def misfit(self, shape: torch.Size) -> str | None:
        """Return None where the blocks make a weight of that shape."""
        made_for = self.weight_shape
        return None if shape == made_for else f"made for {made_for}, the weight is {tuple(shape)}"

    def change(self, weight: Tensor, cast: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the matrix of circulant blocks."""
        kernel = cast(self.kernel)
        place = torch.arange(kernel.shape[2], device=kernel.device)
        blocks = kernel[:, :, (place[None, :] - place[:, None]) % kernel.shape[2]]  # (out/b, in/b, p, q)
        return blocks.transpose(1, 2).reshape(weight.shape) / weight.shape[1]

    def forms(self, shape: torch.Size, cast: Cast, original: Callable[[], Tensor]) -> tuple[Form, ...]:
        """Return the products in the frequencies of each block, where a circulant block is diagonal."""
        return (Map("input", by_circulants, (cast(self.kernel) / shape[1],)),)


def by_circulants(values: Tensor, kernel: Tensor) -> Tensor:
    """Return the matrix of circulant blocks @ each vector, from a kernel (m, n, b); no FFT takes half precision."""
    dtype = torch.promote_types(values.dtype, torch.float32)
    size = kernel.shape[2]
    rows = torch.fft.rfft(kernel.to(dtype)).conj()  # (m, n, f)
    found = torch.fft.rfft(values.to(dtype).reshape(*values.shape[:-1], -1, size))  # (…, n, f)
    summed = torch.einsum("mnf,...nf->...mf", rows, found)
    products: Tensor = torch.fft.irfft(summed, size)
    return products.flatten(-2).to(values.dtype)


def build(group: Group) -> list[Circulant]:
    """Return the adapter of one module; ValueError says what is contradictory."""
    (kernel,) = group.need("kernel")
    if kernel.ndim != 3 or kernel.numel() == 0:
        raise ValueError(f"the kernel is no matrix of blocks: {group.shapes()}")
    return [Circulant(kernel, group.keys)]


ALGORITHM = Algorithm("c3a", ENDINGS["c3a"], build, shared=())
