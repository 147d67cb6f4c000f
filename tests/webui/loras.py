"""LoRA files for the tiny checkpoints, named as trainers name them, with the shapes of the checkpoints' own weights."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

# SD1 and SD2: where a block of the original lies in diffusers' UNet, as kohya's keys name it.
_ROWS = {
    **{
        f"input_blocks.{1 + 3 * block + layer}": f"down_blocks_{block}_{{}}_{layer}"
        for block in range(4)
        for layer in (0, 1)
    },
    **{
        f"output_blocks.{3 * block + layer}": f"up_blocks_{block}_{{}}_{layer}"
        for block in range(4)
        for layer in (0, 1, 2)
    },
}
_MIDDLE = {
    "middle_block.0": "mid_block_resnets_0",
    "middle_block.1": "mid_block_attentions_0",
    "middle_block.2": "mid_block_resnets_1",
}
_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "emb_layers.1": "time_emb_proj",
    "skip_connection": "conv_shortcut",
}
_TOP = {
    "input_blocks.0.0": "conv_in",
    "out.2": "conv_out",
    "time_embed.0": "time_embedding_linear_1",
    "time_embed.2": "time_embedding_linear_2",
    **{f"input_blocks.{3 + 3 * block}.0.op": f"down_blocks_{block}_downsamplers_0_conv" for block in range(3)},
    "output_blocks.2.1.conv": "up_blocks_0_upsamplers_0_conv",  # a block without attention
    "output_blocks.5.2.conv": "up_blocks_1_upsamplers_0_conv",
    "output_blocks.8.2.conv": "up_blocks_2_upsamplers_0_conv",
}
_OPEN_CLIP = {"attn.out_proj": "self_attn_out_proj", "mlp.c_fc": "mlp_fc1", "mlp.c_proj": "mlp_fc2"}


def _diffusers_name(path: str) -> str | None:
    """Return kohya's name for a module of SD1's or SD2's UNet, or None for those that no trainer touches."""
    if path in _TOP:
        return _TOP[path]
    match = re.fullmatch(r"((?:input|output)_blocks\.\d+|middle_block)\.(\d+)\.(.*)", path)
    if match is None:
        return None
    block, index, inner = match.groups()
    if block == "middle_block":
        head = _MIDDLE[f"{block}.{index}"]
    elif block not in _ROWS or index not in "01":
        return None
    else:
        head = _ROWS[block].format("resnets" if index == "0" else "attentions")
    if "resnets" in head:
        return f"{head}_{_RESNET[inner]}" if inner in _RESNET else None
    return f"{head}_{inner.replace('.', '_')}"


def modules(checkpoint: Path, kind: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield kohya's name and the weight's shape for each module of UNet and text encoders."""
    with safe_open(checkpoint, "pt") as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    for key, shape in shapes.items():
        path, _, name = key.rpartition(".")
        if name == "in_proj_weight":
            layer = _layer(path)
            for projection in "qkv":
                yield (
                    f"{_te(path)}_text_model_encoder_layers_{layer}_self_attn_{projection}_proj",
                    (shape[0] // 3, shape[1]),
                )
        if name != "weight" or len(shape) not in (2, 4):
            continue
        if path.startswith("model.diffusion_model."):
            inner = path.removeprefix("model.diffusion_model.")
            named = inner.replace(".", "_") if kind == "sdxl" else _diffusers_name(inner)
            if named is not None:
                yield f"lora_unet_{named}", shape
        elif "text_model.encoder" in path:
            first = "lora_te1" if kind == "sdxl" else "lora_te"
            yield f"{first}_{path[path.index('text_model') :].replace('.', '_')}", shape
        elif ".resblocks." in path:
            inner = path.partition(".resblocks.")[2].partition(".")[2]
            if inner in _OPEN_CLIP:
                yield f"{_te(path)}_text_model_encoder_layers_{_layer(path)}_{_OPEN_CLIP[inner]}", shape


def _te(path: str) -> str:
    return "lora_te2" if path.startswith("conditioner") else "lora_te"


def _layer(path: str) -> str:
    return path.partition(".resblocks.")[2].partition(".")[0]


def write(
    path: Path, checkpoint: Path, kind: str = "sd1", *, seed: int = 0, only: str = "", size: float = 0.08, rank: int = 4
) -> Path:
    """Write a LoRA with random factors for the modules whose name has `only` in it, convolutions included."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for name, shape in modules(checkpoint, kind):
        if only not in name or ("text" in name and "_mlp_" not in name and "attn" not in name):
            continue
        tensors[f"{name}.lora_up.weight"] = (
            torch.randn(shape[0], rank, *([1] * (len(shape) - 2)), generator=generator) * size
        )
        tensors[f"{name}.lora_down.weight"] = torch.randn(rank, *shape[1:], generator=generator) * size
        tensors[f"{name}.alpha"] = torch.tensor(float(rank))
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.half() for key, tensor in tensors.items()}, path, {"ss_output_name": path.stem})
    return path


def write_sd3(path: Path, checkpoint: Path, *, native: bool = False, seed: int = 0, rank: int = 4) -> Path:
    """Write a LoRA for SD3's attention: q, k, v apart as diffusers has them, or `native`, fused and for CLIP too."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}

    def add(up: str, down: str, outputs: int, inputs: int) -> None:
        tensors[up] = torch.randn(outputs, rank, generator=generator) * 0.1
        tensors[down] = torch.randn(rank, inputs, generator=generator) * 0.1

    with safe_open(checkpoint, "pt") as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    for key, shape in shapes.items():
        match = re.fullmatch(r"model\.diffusion_model\.joint_blocks\.(\d+)\.(x|context)_block\.attn\.qkv\.weight", key)
        clip = re.fullmatch(r"text_encoders\.clip_(l|g)\.transformer\.(text_model\.encoder\..*\.q_proj)\.weight", key)
        if match and native:
            stem = f"lora_unet_joint_blocks_{match[1]}_{match[2]}_block_attn_qkv"
            add(f"{stem}.lora_up.weight", f"{stem}.lora_down.weight", *shape)
        elif clip and native:
            stem = f"lora_te{1 if clip[1] == 'l' else 2}_{clip[2].replace('.', '_')}"
            add(f"{stem}.lora_up.weight", f"{stem}.lora_down.weight", *shape)
        elif match and match[2] == "x":
            for name in ("to_q", "to_k", "to_v"):
                stem = f"transformer.transformer_blocks.{match[1]}.attn.{name}"
                add(f"{stem}.lora_B.weight", f"{stem}.lora_A.weight", shape[0] // 3, shape[1])
    save_file({key: tensor.half() for key, tensor in tensors.items()}, path, {"ss_output_name": path.stem})
    return path
