"""LoRA files for the small checkpoint, named as trainers name them, with the shapes of the checkpoint's own weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

_UNET, _TEXT = "model.diffusion_model.", "cond_stage_model.transformer."
_NOT_TRAINED = ("embeddings", "norm", ".emb_layers.0")


def modules(checkpoint: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the file's name and the weight's shape of each module that trainers train."""
    with safe_open(checkpoint, "pt") as file:
        for key in file.keys():  # noqa: SIM118 - it is no dictionary
            shape = tuple(file.get_slice(key).get_shape())
            if not key.endswith(".weight") or len(shape) not in (2, 4) or any(part in key for part in _NOT_TRAINED):
                continue
            path = key.removesuffix(".weight")
            if path.startswith(_UNET):
                yield f"lora_unet_{path.removeprefix(_UNET).replace('.', '_')}", shape
            elif path.startswith(_TEXT) and ("self_attn" in path or ".mlp." in path):
                yield f"lora_te_{path.removeprefix(_TEXT).replace('.', '_')}", shape


def write(path: Path, checkpoint: Path, *, seed: int = 0, only: str = "", size: float = 0.03, rank: int = 4) -> Path:
    """Write a LoRA with random factors for the modules whose name has `only` in it, convolutions included."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for name, shape in modules(checkpoint):
        if only in name:
            kernel = [1] * (len(shape) - 2)
            tensors[f"{name}.lora_up.weight"] = torch.randn(shape[0], rank, *kernel, generator=generator) * size
            tensors[f"{name}.lora_down.weight"] = torch.randn(rank, *shape[1:], generator=generator) * size
            tensors[f"{name}.alpha"] = torch.tensor(float(rank))
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.half() for key, tensor in tensors.items()}, path, {"ss_output_name": path.stem})
    return path
