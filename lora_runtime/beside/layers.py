"""What kind of layer a module is, told by what it has and not only by its class: quantised layers have classes of
their own.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import FunctionType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrize import is_parametrized

from lora_runtime import routes
from lora_runtime.adapters import Adapter, no_autocast
from lora_runtime.dialects import Part
from lora_runtime.merge import region_of
from lora_runtime.routes import own_forward

__all__ = [
    "convolve",
    "is_convolution",
    "is_linear",
    "is_table",
    "is_turned",
    "own_bias",
    "part_shape",
    "reason_against",
    "run_with",
]

# torch's MultiheadAttention takes the weights of its layers and never calls them.
_NEVER_CALLED = ("MultiheadAttention", "NonDynamicallyQuantizableLinear")
# A host that puts its own there for all layers keeps what they mean.
_PLAIN_CLASSES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
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
    if (is_linear(module) or is_convolution(module)) and _is_other(module):
        return f"a {kind} has a forward pass of its own, which is no W·x + b"
    return None


def _is_transposed(module: nn.Module) -> bool:
    return isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d))


_NEAR = 0.02  # what a layer that computes in 16 bits may be off by
_measured: weakref.WeakKeyDictionary[FunctionType, dict[object, bool]] = weakref.WeakKeyDictionary()


def _is_other(module: nn.Module) -> bool:
    """Return whether a layer with a forward pass of its own does something else with its weight than W·x.

    No class says so (causal convolutions, routers, weights that are normalised), so it is measured on numbers, once for
    all layers with this forward pass and equal settings. Of a weight that is stored otherwise it is not: nothing else
    could act there.
    """
    forward = getattr(own_forward(module), "__func__", own_forward(module))
    weight = module._parameters.get("weight")
    if forward in [kind.forward for kind in _PLAIN_CLASSES] or weight is None or not routes.is_plain(module, "weight"):
        return False
    if not isinstance(forward, FunctionType):
        return _measure(module, weight)
    known = _measured.setdefault(forward, {})
    key = tuple((name, value) for name, value in vars(module).items() if _is_setting(value))
    if key not in known:
        known[key] = _measure(module, weight)
    return known[key]


def _is_setting(value: object) -> bool:
    return isinstance(value, (bool, int, float, str)) or (
        isinstance(value, tuple) and all(isinstance(number, int) for number in value)
    )


def _measure(module: nn.Module, weight: nn.Parameter) -> bool:
    device = torch.device("cpu") if weight.is_meta else weight.device
    numbers = torch.Generator().manual_seed(0)
    ups, downs = (torch.randn(size, generator=numbers) for size in (weight.shape[0], weight[0].numel()))
    change = torch.outer(ups, downs).view(weight.shape).to(device)  # of rank 1: drawn in no time, whatever its size
    if is_convolution(module):
        convolution: Any = module
        spans = zip(convolution.kernel_size, convolution.dilation, strict=True)
        sizes = (convolution.in_channels, *(dilation * (kernel - 1) + 2 for kernel, dilation in spans))
        expected: Callable[[Tensor, Tensor], Tensor] = partial(convolve, module)
    else:
        sizes = (weight.shape[0 if is_turned(module) else 1],)
        expected = _turned if is_turned(module) else functional.linear
    inputs = torch.randn(2, *sizes, generator=numbers).to(device)
    parameters = {name: own for name, own in module._parameters.items() if own is not None}
    nothing = {name: torch.zeros(own.shape, device=device) for name, own in parameters.items()}
    try:
        with torch.no_grad(), no_autocast(device):
            plain = expected(inputs, change)
            made = run_with(module, {**nothing, "weight": change}, (inputs,), {})
            offset = run_with(module, nothing, (inputs,), {})
    except (RuntimeError, TypeError, ValueError, AttributeError):
        return False  # it runs with its own tensors only, so what it says of itself is all there is to go by
    if not isinstance(made, Tensor) or made.shape != plain.shape:
        return True
    found = made - offset
    if not bool(found.any()):
        return False  # it does not look at the parameter, but where somebody keeps its weight
    return not bool((found - plain).abs().max() <= _NEAR * plain.abs().max())


def _turned(inputs: Tensor, weight: Tensor) -> Tensor:
    return inputs @ weight


def run_with(module: nn.Module, tensors: Mapping[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return what a module puts out with these parameters and buffers for its own, without hooks and offloaders."""
    named = {f"module.{name}": tensor for name, tensor in tensors.items()}
    return torch.func.functional_call(_OwnForward(module), named, args, kwargs)


class _OwnForward(nn.Module):
    """The forward pass of a module alone."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run it."""
        return own_forward(self.module)(*args, **kwargs)


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
