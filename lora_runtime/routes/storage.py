"""How one weight is stored, and W₀ as a dense tensor whatever that is.

    plain float8                        the values, cast
    codes and a scale beside them       values · scale, one scale for all, for each row or for each block
    a class of tensors of its own       its own `dequantize()`: torchao, optimum-quanto, SDNQ while training
    bitsandbytes, GGUF, SDNQ, HQQ       what the library itself makes of its codes
    anything else in a linear layer     what the layer puts out for the unit vectors: W₀ is linear in them

None of these libraries is imported here: whoever has such a weight has imported it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from lora_runtime.errors import ModelError

__all__ = ["dense", "how_stored", "is_linear", "is_plain", "layer_shape", "scale_of", "stands_for_weight"]


def is_linear(module: nn.Module) -> bool:
    """Return whether a module is a linear layer by what it says of itself, of whatever class."""
    if isinstance(module, nn.Linear) or _sizes_in_weight(module) is not None:
        return True
    return type(module.__dict__.get("in_features")) is int and type(module.__dict__.get("out_features")) is int


def _sizes_in_weight(module: nn.Module) -> torch.Size | None:
    """Return (out, in) of a class called Linear that says its sizes by its weight alone: Forge's for GGUF."""
    weight = module._parameters.get("weight")
    if isinstance(module, nn.Linear) or type(module).__name__ != "Linear" or weight is None:
        return None
    if "in_features" in module.__dict__ or len(weight.shape) != 2:
        return None
    return torch.Size(weight.shape)


def stands_for_weight(module: nn.Module) -> bool:
    """Return whether a linear layer keeps its weight as codes under other names than "weight" (GPTQ, AWQ, HQQ)."""
    if "weight" in module._parameters or module._modules or not is_linear(module):
        return False
    return any(name in module._parameters or name in module._buffers for name in ("qweight", "W_q", "codes", "weight"))


def layer_shape(module: nn.Module, name: str) -> torch.Size | None:
    """Return the shape that a parameter has for its layer, however it is stored; None where the module cannot tell."""
    parameter = module._parameters.get(name)
    if name == "weight":
        own = module.__dict__
        if (sizes := _sizes_in_weight(module)) is not None:
            return sizes
        if is_linear(module):
            return torch.Size((own["out_features"], own["in_features"]))
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            return torch.Size((module.out_channels, module.in_channels // module.groups, *module.kernel_size))
        if type(own.get("num_embeddings")) is int and type(own.get("embedding_dim")) is int:
            return torch.Size((own["num_embeddings"], own["embedding_dim"]))
    if parameter is not None:
        return parameter.shape
    values = getattr(module, name, None)
    return values.shape if isinstance(values, Tensor) else None


def how_stored(parameter: nn.Parameter) -> str | None:
    """Return in words how a weight is stored that is no plain floating-point tensor of 16 bits or more, else None."""
    kind: type = type(parameter)
    if kind in (nn.Parameter, Tensor) or kind.__module__.startswith("torch.nn."):
        kind = type(parameter.data)
    if kind is not Tensor:
        return kind.__name__
    plain = parameter.is_floating_point() and parameter.element_size() > 1
    return None if plain else str(parameter.dtype).removeprefix("torch.")


def is_plain(module: nn.Module, name: str) -> bool:
    """Return whether a parameter is W₀ as it is: floating-point numbers of 16 bits or more, unscaled."""
    parameter = module._parameters.get(name)
    return parameter is not None and how_stored(parameter) is None and scale_of(module, name) is None


def scale_of(module: nn.Module, name: str) -> Tensor | float | None:
    """Return the scale that a layer multiplies a parameter by, from beside it, or None without one."""
    places: tuple[Mapping[str, object], ...] = (module._parameters, module._buffers, module.__dict__)
    for label in (f"{name}_scale_inv", f"{name}_scale", f"scale_{name}"):
        for place in places:
            scale = place.get(label)
            if isinstance(scale, (Tensor, float)):
                return scale
    return None


def dense(module: nn.Module, name: str, data: Tensor | None = None) -> Tensor:
    """Return W₀ of a parameter, dequantised, in float32 or its own floating dtype and in the shape of its layer.

    `data` is the stored tensor where somebody else keeps it. Raises ModelError where nothing here can read it.
    """
    parameter = module._parameters.get(name)
    with torch.no_grad():
        found = _by_library(module, name, parameter, data)
        if found is None:
            stored = data if data is not None else parameter
            if stored is not None and stored.is_floating_point() and hasattr(stored, "dequantize"):
                stored = _dequantised(stored)
            if stored is not None and not stored.is_meta and stored.is_floating_point() and type(stored.data) is Tensor:
                found = _scaled(module, name, stored.data)
        if found is None:
            found = _measured(module, name)
    shape = layer_shape(module, name)
    if found.numel() == 0 or (shape is not None and found.shape != shape and found.numel() != shape.numel()):
        raise ModelError(f"W₀ of a {type(module).__name__} cannot be read: it came out as {tuple(found.shape)}")
    found = found.detach() if shape is None else found.detach().reshape(shape)
    return found if found.element_size() > 1 else found.float()


def _dequantised(stored: Tensor) -> Tensor:
    """Return the values of a tensor of a class of its own; a plain one as it is."""
    return stored if type(stored.data) is Tensor else stored.dequantize()


def _scaled(module: nn.Module, name: str, values: Tensor) -> Tensor | None:
    """Return values · scale: one scale for all, for each row, each column or each block; None where it fits none."""
    scale = scale_of(module, name)
    if scale is None or values.element_size() > 1:
        return values.float() if values.element_size() == 1 else None if scale is not None else values
    values = values.float()
    if isinstance(scale, float) or scale.numel() == 1:
        return values * float(scale)
    factors = scale.detach().to(values.device, torch.float32)
    if factors.ndim == 1 and factors.shape[0] == values.shape[0]:
        return values * factors.view(-1, *(1 for _ in values.shape[1:]))
    if factors.ndim != values.ndim:
        return None
    for dim, (blocks, size) in enumerate(zip(factors.shape, values.shape, strict=True)):
        if blocks not in (1, size):
            each = _block(module, dim) or -(-size // blocks)
            if -(-size // each) != blocks:
                return None
            factors = factors.repeat_interleave(each, dim).narrow(dim, 0, size)
    return values * factors


def _block(module: nn.Module, dim: int) -> int | None:
    """Return how many rows or columns share a scale, where the layer says so."""
    size = module.__dict__.get("block_size")
    return int(size[dim]) if isinstance(size, (tuple, list)) and len(size) > dim else None


def _by_library(module: nn.Module, name: str, parameter: Tensor | None, data: Tensor | None) -> Tensor | None:
    """Return what the library that made the codes makes of them, or None where it is none of these."""
    kind = type(parameter).__name__
    if name == "weight" and "sdnq_dequantizer" in module.__dict__:
        labels = ("scale", "scale_2", "scale_zero_point", "zero_point", "zero_point_scale", "zero_point_2")
        own = {label: getattr(module, label, None) for label in (*labels, "svd_up", "svd_down")}
        found = {label: tensor for label, tensor in own.items() if tensor is not None}
        read: Any = module.sdnq_dequantizer
        weights: Tensor = read(
            parameter if data is None else data,
            **found,
            skip_quantized_matmul=read.use_quantized_matmul,
            skip_compile=True,
        )
        return weights
    if kind == "Params4bit":
        state = getattr(parameter, "quant_state", None) or getattr(module, "quant_state", None)
        functional = sys.modules.get("bitsandbytes.functional")
        # For processors with bfloat16 the layer packs its codes anew at its first call, and only itself can read them.
        packed = getattr(state, "packing_format_for_cpu", False)
        if state is not None and functional is not None and parameter is not None and not packed:
            codes = parameter.data if data is None else data.data
            return cast("Tensor", functional.dequantize_4bit(codes, state))
        return None
    if kind == "Int8Params" and parameter is not None:
        return _int8(module, parameter, data)
    if kind == "GGUFParameter" and parameter is not None:
        made: Any = type(parameter)
        of_blocks = getattr(sys.modules.get(made.__module__), "dequantize_gguf_tensor", None)
        if of_blocks is not None:
            blocks = parameter if data is None else made(data, quant_type=getattr(parameter, "quant_type", None))
            return cast("Tensor", of_blocks(blocks))
    if name == "weight" and type(module.__dict__.get("ggml_type")) is int and parameter is not None:
        return _of_ggml(module, parameter.data if data is None else data)
    if type(module).__name__ == "HQQLinear":
        return cast("Tensor", module.dequantize())  # type: ignore[operator]
    return None


def _int8(module: nn.Module, parameter: Tensor, data: Tensor | None) -> Tensor | None:
    """Return codes · row scale / 127 of a layer of bitsandbytes, which moves both to its state at the first call."""
    state = getattr(module, "state", None)
    codes = next((c for c in (data, getattr(state, "CB", None), parameter.data) if c is not None), None)
    scale = next((s for s in (getattr(parameter, "SCB", None), getattr(state, "SCB", None)) if s is not None), None)
    if codes is None or codes.dtype != torch.int8 or scale is None:
        return None
    rows: Tensor = scale.to(codes.device).view(-1, 1) / 127.0
    return codes.float() * rows


def _of_ggml(module: nn.Module, codes: Tensor) -> Tensor | None:
    """Return the values of blocks as transformers keeps them; a layer may take its inputs in another order."""
    library = sys.modules.get("transformers.integrations.gguf.dequant")
    shape = layer_shape(module, "weight")
    if library is None or shape is None:
        return None
    flat: Tensor = library.dequantize(codes.reshape(-1), module.ggml_type)
    values = flat.reshape(shape)
    order: Any = getattr(module, "input_permutation", None)
    if not isinstance(order, Tensor):
        return values
    ordered = torch.empty_like(values)
    ordered[:, order] = values
    return ordered


_ROWS = 1024  # unit vectors at a time


def _measured(module: nn.Module, name: str) -> Tensor:
    """Return the weight of a linear layer as its outputs for the unit vectors tell it."""
    if name != "weight" or not is_linear(module):
        raise ModelError(f"the {name} of a {type(module).__name__} cannot be read: dequantise the model first")
    sizes = layer_shape(module, "weight")
    assert sizes is not None
    inputs = sizes[1]
    tensors = [t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None]
    device = next((t.device for t in tensors if not t.is_meta), torch.device("cpu"))
    failure: Exception | None = None
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        try:
            zero = module.forward(torch.zeros(1, inputs, dtype=dtype, device=device)).float()
            columns = []
            for start in range(0, inputs, _ROWS):
                units = torch.zeros(min(_ROWS, inputs - start), inputs, dtype=dtype, device=device)
                units[:, start:].fill_diagonal_(1.0)
                columns.append(module.forward(units).float().sub_(zero).t())
            return torch.cat(columns, 1)
        except (RuntimeError, TypeError, ValueError, AssertionError) as error:
            failure = error
    raise ModelError(f"W₀ of a {type(module).__name__} cannot be read: {failure}") from failure
