"""QLoRA's base: the linear layers of a denoiser in 4 or 8 bits, by bitsandbytes.

Dettmers et al. 2023, arXiv:2305.14314. The layers in training are the same as on whole weights. What is quantised stays
so after the training.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import nn

from lora_runtime.errors import TrainingError

__all__ = ["quantise"]


def quantise(root: nn.Module, kind: str, device: torch.device, dtype: torch.dtype) -> None:
    """Put bitsandbytes' layers in the place of all linear ones, on the device; `kind` is "nf4" or "int8".

    `dtype`: of the products. Layers that are quantised already stay. TrainingError without bitsandbytes.
    """
    try:
        layers: Any = import_module("bitsandbytes").nn
    except ImportError as error:
        raise TrainingError(f"quantize {kind} needs bitsandbytes, which is not installed: {error}") from error
    for _, module in list(root.named_modules()):
        for name, child in list(module.named_children()):
            if type(child) is not nn.Linear:
                continue
            inputs, outputs, bias = child.in_features, child.out_features, child.bias
            made: Any
            if kind == "nf4":
                made = layers.Linear4bit(inputs, outputs, bias is not None, compute_dtype=dtype, quant_type="nf4")
                made.weight = layers.Params4bit(child.weight.data.cpu(), requires_grad=False, quant_type="nf4")
            else:
                made = layers.Linear8bitLt(inputs, outputs, bias is not None, has_fp16_weights=False)
                made.weight = layers.Int8Params(child.weight.data.cpu(), requires_grad=False, has_fp16_weights=False)
            if bias is not None:
                made.bias = nn.Parameter(bias.data.to(dtype), requires_grad=False)
            setattr(module, name, made.to(device))
