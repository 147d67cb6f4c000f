"""What kind of layer a module is, told by what it has and not only by its class: quantised layers have classes of
their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from lora_runtime import routes
from lora_runtime.adapters import Adapter
from lora_runtime.dialects import Part
from lora_runtime.merge import region_of

__all__ = [
    "convolve",
    "is_convolution",
    "is_linear",
    "is_table",
    "is_turned",
    "own_bias",
    "part_shape",
    "reason_against",
]

# torch's MultiheadAttention takes the weights of its layers and never calls them.
_NEVER_CALLED = ("MultiheadAttention", "NonDynamicallyQuantizableLinear")
_TURNED_LINEAR = "Conv1D"  # of transformers: a linear layer with a weight (in, out)


def is_turned(module: nn.Module) -> bool:
    """Return whether it is a linear layer whose weight is (in, out)."""
    return type(module).__name__ == _TURNED_LINEAR


def is_linear(module: nn.Module) -> bool:
    """Return whether its output is W·x + b for vectors in the last dimension."""
    return routes.is_linear(module) or is_turned(module)


def is_convolution(module: nn.Module) -> bool:
    """Return whether it is a convolution that is not transposed."""
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return True
    named = all(hasattr(module, name) for name in ("in_channels", "out_channels", "kernel_size", "groups"))
    return named and hasattr(module, "_conv_forward") and not getattr(module, "transposed", False)


def is_table(module: nn.Module) -> bool:
    """Return whether it is an embedding."""
    return isinstance(module, nn.Embedding)


def reason_against(module: nn.Module, parameter: str, adapters: Sequence[Adapter] = ()) -> str | None:
    """Return why these adapters of a parameter cannot act beside the module, or None where they can.

    They can where the output is a linear function of the parameter, and the module is called; a dense Δ is what is
    left for an adapter that has no form of its own.
    """
    kind = type(module).__name__
    if kind in _NEVER_CALLED:
        return f"the weights of a {kind} are used without calling it"
    linear = is_linear(module) or is_convolution(module) or is_table(module) or "Norm" in kind or _is_transposed(module)
    if parameter not in ("weight", "bias") or not linear:
        return f"the output of a {kind} is no linear function of its {parameter}"
    if parameter == "bias" and is_table(module):
        return f"a {kind} has no bias"
    if is_parametrized(module, parameter) and not (is_linear(module) or is_convolution(module)):
        # It is run once more with another tensor for it, and a parametrization would put that into its own originals.
        return f"the {parameter} of a {kind} cannot be another for one call"
    return None


def _is_transposed(module: nn.Module) -> bool:
    return isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d))


def part_shape(shape: torch.Size, part: Part) -> torch.Size:
    """Return the shape in which files have a part of a weight of that shape."""
    return region_of(torch.empty((), device="meta").expand(shape), part).shape


def own_bias(module: nn.Module) -> Tensor | None:
    """Return what the layer adds to every output, (out,)."""
    bias = getattr(module, "bias", None)
    return bias if isinstance(bias, Tensor) else None


def convolve(module: nn.Module, inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return the output of a convolution like this one with another weight."""
    return cast("Tensor", module._conv_forward(inputs, weight, bias))  # type: ignore[operator]  # torch's convolutions
