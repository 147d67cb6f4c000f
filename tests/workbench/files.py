"""Files for the workbench's tests, and what is in them by the adapters' own formula in float64."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from adapters.judge import rand
from safetensors.torch import save_file
from torch import Tensor, nn

from lora_runtime.lora import Lora

TO_Q, CONV_IN, TO_K = (
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
    "lora_unet_conv_in",
    "lora_unet_up_blocks_1_attentions_0_transformer_blocks_0_attn1_to_k",
)
TEXT = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
SHAPES = {
    TO_Q: torch.Size((12, 20)),
    CONV_IN: torch.Size((10, 4, 3, 3)),
    TO_K: torch.Size((8, 6)),
    TEXT: torch.Size((6, 6)),
}


def factors(
    stem: str, rank: int = 4, *, alpha: float | None = 3.0, seed: int = 0, shape: torch.Size | None = None
) -> dict[str, Tensor]:
    """Return a LoRA on one module by kohya's keys, and its alpha."""
    outputs, *inputs = SHAPES[stem] if shape is None else shape
    ones = (1,) * (len(inputs) - 1)
    found = {
        f"{stem}.lora_up.weight": rand(outputs, rank, *ones, seed=seed),
        f"{stem}.lora_down.weight": rand(rank, *inputs, seed=seed + 1),
    }
    return found if alpha is None else found | {f"{stem}.alpha": torch.tensor(alpha)}


def written(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Path:
    """Write a file as the library does."""
    save_file(
        {key: tensor.detach().clone().contiguous() for key, tensor in tensors.items()}, path, dict(metadata or {})
    )
    return path


def delta(lora: Lora, stem: str, weight: Tensor | torch.Size | None = None, parameter: str = "weight") -> Tensor:
    """Return ΣΔ of one module in float64, by the adapters' own formula."""
    if not isinstance(weight, Tensor):
        weight = torch.zeros(SHAPES[stem] if weight is None else weight, dtype=torch.float64)
    own = [adapter for adapter in lora.adapters[stem] if adapter.parameter == parameter]
    return torch.stack([adapter.delta(weight.double()) for adapter in own]).sum(0)


def checkpoint(path: Path, modules: Mapping[str, nn.Module]) -> Path:
    """Write the weights of modules under these names, as one file."""
    return written(
        path,
        {f"{name}.{key}": tensor for name, module in modules.items() for key, tensor in module.state_dict().items()},
    )
