"""How an adapter's change acts beside a layer, without a weight of its size.

A layer gives W₀x. Beside it Δx is added: as two thin products, as a map of the layer's input or of its output, or as
the layer itself run once more on a changed input. Vectors have their channels last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Factors", "Form", "Map", "khatri_rao", "low_rank", "pays", "scaled"]


@dataclass(frozen=True, eq=False)
class Factors:
    """A delta of low rank: delta = scale · up @ down, flattened to two dimensions."""

    up: Tensor  # (out, rank)
    down: Tensor  # (rank, in·k…)
    scale: float


@dataclass(frozen=True, eq=False)
class Map:
    """A linear map that gives Δx, with `tensors` for its numbers.

    `of` says what `act(values, *tensors)` is given and gives:

        "input"     x (…, in), and gives Δx (…, out)
        "output"    W₀x (…, out), and gives Δx (…, out): Δ = A·W₀
        "before"    x (…, in), and gives x′ (…, in), of which the layer makes Δx = W₀x′: Δ = W₀·A
        "pixels"    the inputs of a convolution, with `act(values, convolve, *tensors)`: convolve(inputs, kernel) runs
                    the layer's convolution with another kernel

    The numbers of the input are multiplied by `by_input` first, and those of Δx by `by_output` last.
    """

    of: Literal["input", "output", "before", "pixels"]
    act: Callable[..., Tensor]
    tensors: tuple[Tensor, ...]
    by_input: Tensor | None = None  # (in,)
    by_output: Tensor | None = None  # (out,)
    rows: tuple[int, int] | None = None  # only these channels of Δx, of all that `act` gives


Form = Factors | Map


def khatri_rao(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the factors of the Hadamard product of two products, (out, r₁·r₂) and (r₁·r₂, in·k…).

    Each factor is the row-wise (or column-wise) Khatri-Rao product of the two that it is made of.
    """
    (up1, down1), (up2, down2) = a, b
    up = (up1[:, :, None] * up2[:, None, :]).flatten(1)
    down = (down1.flatten(1)[:, None] * down2.flatten(1)[None, :]).flatten(0, 1)
    return up, down


def pays(rank: int, shape: torch.Size) -> bool:
    """Return whether two products of that rank cost a call less than one with a weight of that shape."""
    columns = shape[1:].numel()
    return rank * (shape[0] + columns) < shape[0] * columns


def scaled(
    forms: tuple[Form, ...], shape: torch.Size, *, by_input: Tensor | None = None, by_output: Tensor | None = None
) -> tuple[Form, ...]:
    """Return the forms of the same changes with their inputs, or their outputs, multiplied by these numbers."""
    made: list[Form] = []
    for form in forms:
        if isinstance(form, Map):
            into = form.by_input if by_input is None else _times(by_input, form.by_input)
            onto = form.by_output if by_output is None else _times(by_output, form.by_output)
            made.append(replace(form, by_input=into, by_output=onto))
            continue
        up, down = form.up, form.down
        if by_output is not None:
            up = up.to(by_output) * by_output[:, None]
        if by_input is not None:
            kernel = down.reshape(down.shape[0], *shape[1:])
            down = (kernel.to(by_input) * by_input.reshape(-1, *(1 for _ in shape[2:]))).flatten(1)
        made.append(Factors(up, down, form.scale))
    return tuple(made)


def _times(numbers: Tensor, others: Tensor | None) -> Tensor:
    return numbers if others is None else numbers * others


# ---- maps that several algorithms have ------------------------------------------------------------------------------


def multiply(values: Tensor, numbers: Tensor) -> Tensor:
    """Return the values, each channel multiplied by its number."""
    return values * numbers


def low_rank(values: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Return up @ down @ each vector, from (c, r) and (r, c)."""
    return values @ down.mT @ up.mT


def by_blocks(values: Tensor, blocks: Tensor) -> Tensor:
    """Return blockdiag(blocks) @ each vector, from blocks (n, b, b) for n·b channels, or (1, b, b) for any n."""
    apart = values.reshape(*values.shape[:-1], -1, blocks.shape[-1])  # (…, n, b)
    return torch.matmul(blocks, apart[..., None])[..., 0].flatten(-2)
