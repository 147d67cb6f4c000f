"""A UNet of Stable Diffusion 1.5's size with random weights, and random LoRA files that fit it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

# The config of Stable Diffusion 1.5's UNet: 860 M parameters. (`attention_head_dim` is the number of heads here.)
SD15: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "norm_num_groups": 32,
}
Layer = nn.Linear | nn.Conv2d

SMALL: dict[str, Any] = SD15 | {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "cross_attention_dim": 32,
    "attention_head_dim": 4,
    "norm_num_groups": 8,
}


def make_unet(config: dict[str, Any], dtype: torch.dtype, device: torch.device) -> Any:
    """Return a UNet with random weights; made on the meta device, as torch's own initialisation takes half a minute."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**config).to(dtype)
    return filled(unet, device)


def filled(root: Any, device: torch.device) -> Any:
    """Return a model from the meta device on another one, with random weights."""
    root = root.to_empty(device=device).eval().requires_grad_(False)
    for name, parameter in root.named_parameters():
        if parameter.ndim > 1:
            parameter.data.uniform_(-0.03, 0.03)
        else:
            parameter.data.fill_(float("norm" in name and name.endswith("weight")))
    return root


# Flux with all of its blocks, each narrow: the names and the number of weights are those of the real one.
FLUX_NARROW: dict[str, Any] = {
    "in_channels": 8,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 16,
    "pooled_projection_dim": 16,
    "guidance_embeds": True,
    "axes_dims_rope": (4, 6, 6),
}
FLUX_TINY = FLUX_NARROW | {"num_layers": 2, "num_single_layers": 2}
# Flux as it is released: 11.9 B parameters.
FLUX: dict[str, Any] = FLUX_NARROW | {
    "in_channels": 64,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "axes_dims_rope": (16, 56, 56),
}
# The UNet of Stable Diffusion XL: 2.57 B parameters.
SDXL: dict[str, Any] = {
    "sample_size": 128,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 2048,
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "norm_num_groups": 32,
}
SDXL_SMALL = SMALL | {
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 16,
}


def make_flux(config: dict[str, Any]) -> Any:
    """Return a FluxTransformer2DModel with random weights, in float32 and host memory."""
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(**config).eval().requires_grad_(False)


def make_pipeline(unet: nn.Module) -> Any:
    """Return a pipeline around the UNet alone, for the loaders that diffusers hangs on pipelines."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    return StableDiffusionPipeline(
        vae=None,
        text_encoder=None,
        tokenizer=None,
        unet=unet,
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def step(unet: Any, size: int, batch: int = 2) -> Callable[[], Tensor]:
    """Return a function that runs the UNet once on `size` × `size` latents; batch 2 is what guidance needs."""
    weight = next(unet.parameters())
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(batch, 4, size, size, generator=generator).to(weight)
    states = torch.randn(batch, 77, unet.config.cross_attention_dim, generator=generator).to(weight)
    time = torch.tensor([500] * batch, device=weight.device)

    @torch.inference_mode()
    def run() -> Tensor:
        sample: Tensor = unet(latents, time, encoder_hidden_states=states).sample
        return sample

    return run


def linears(unet: nn.Module) -> dict[str, Layer]:
    """Return the linears inside of the attention blocks, feed-forward included: what a kohya LoRA trains.

    160 in SD1.5, of 242 M weights: 16 blocks with to_q, to_k, to_v and to_out twice and two in the feed-forward.
    """
    return {name: m for name, m in unet.named_modules() if isinstance(m, nn.Linear) and ".attentions." in f".{name}"}


def convolutions(unet: nn.Module) -> dict[str, Layer]:
    """Return the 3×3 convolutions inside of the blocks: what a LoCon adds. 50 in SD1.5, of 541 M weights."""
    outer = ("conv_in", "conv_out")
    return {
        name: m
        for name, m in unet.named_modules()
        if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) and name not in outer
    }


def write_loras(folder: Path, modules: dict[str, Layer], count: int, rank: int) -> list[Path]:
    """Write `count` random LoRA files in kohya's names and fp16, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    paths = []
    for index in range(count):
        tensors: dict[str, Tensor] = {}
        for name, module in modules.items():
            out, columns, *kernel = module.weight.shape
            key = "lora_unet_" + name.replace(".", "_")
            ones = [1] * len(kernel)
            tensors[f"{key}.lora_down.weight"] = (
                torch.randn(rank, columns, *kernel, generator=generator).mul_(0.02).half()
            )
            tensors[f"{key}.lora_up.weight"] = torch.randn(out, rank, *ones, generator=generator).mul_(0.02).half()
            tensors[f"{key}.alpha"] = torch.tensor(rank / 2)
        path = folder / f"lora{index}.safetensors"
        save_file(tensors, path, {"ss_output_name": path.stem, "ss_network_module": "networks.lora"})
        paths.append(path)
    return paths


def all_linears(root: nn.Module) -> dict[str, nn.Linear]:
    """Return every linear layer of a model."""
    return {name: module for name, module in root.named_modules() if isinstance(module, nn.Linear)}


def write_lora(path: Path, modules: Mapping[str, Layer], rank: int, prefix: str, seed: int = 0) -> Path:
    """Write a LoRA for linear layers in PEFT's names and fp16, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for name, module in modules.items():
        out, columns = module.weight.shape
        down = torch.randn(rank, columns, generator=generator).mul_(0.02).half()
        up = torch.randn(out, rank, generator=generator).mul_(0.02).half()
        tensors |= {f"{prefix}{name}.lora_A.weight": down, f"{prefix}{name}.lora_B.weight": up}
    save_file(tensors, path)
    return path


def write_large_lora(path: Path, size: int) -> Path:
    """Write a LoRA of about `size` bytes, of modules of SDXL's size in fp16, and return its path."""
    rank, width = 128, 1280
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor] = {}
    for number in range(max(1, size // (4 * rank * width))):
        key = f"lora_unet_input_blocks_{number}_1_proj_in"
        tensors[f"{key}.lora_down.weight"] = torch.randn(rank, width, generator=generator).half()
        tensors[f"{key}.lora_up.weight"] = torch.randn(width, rank, generator=generator).half()
        tensors[f"{key}.alpha"] = torch.tensor(rank / 2)
    save_file(tensors, path)
    return path


def write_many_keys(path: Path, count: int) -> Path:
    """Write a LoRA of `count` keys, three a module, and return its path."""
    tensors: dict[str, Tensor] = {}
    for number in range(count // 3):
        key = f"lora_unet_down_blocks_{number}_attentions_0_transformer_blocks_0_attn1_to_q"
        tensors[f"{key}.lora_down.weight"] = torch.ones(1, 4).half()
        tensors[f"{key}.lora_up.weight"] = torch.ones(4, 1).half()
        tensors[f"{key}.alpha"] = torch.tensor(0.5)
    save_file(tensors, path)
    return path
