"""The models of the GPU's tables: the denoisers of SD1.5, SDXL and Flux with random weights, and files for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import model
from benchmarks.contestants import Setting
from benchmarks.model import Layer

__all__ = ["SHAPES", "Shape", "build"]

FILES, RANK = 2, 32
# Of a Flux that does not fit several times: blocks of each kind, at their real width.
FEW_BLOCKS = {"num_layers": 4, "num_single_layers": 8}
WHOLE_FLUX_NEEDS = 80e9  # bytes free: the model in 16 bits, W′ beside it, and the same once more in passing
SHAPES = ("SD1.5", "SDXL", "Flux")


@dataclass(frozen=True)
class Shape:
    """A model on a device, what is to be put on it, and one step of it; `note` says what is not as in the real one."""

    name: str
    note: str
    setting: Setting
    step: Callable[[], object]


def build(name: str, folder: Path, device: torch.device, free: float | None, *, tiny: bool) -> Shape:
    """Return a model in bfloat16 (a tiny one in float32); its files are written into `folder` where they are not yet.

    `free`: the bytes that the device has left, None where it does not tell.
    """
    dtype = torch.float32 if tiny else torch.bfloat16
    make = {"SD1.5": _sd15, "SDXL": _sdxl, "Flux": _flux}[name]
    root, pipe, component, inputs, note = make(device, dtype, free, tiny)
    modules: dict[str, Layer] = {
        path: module
        for path, module in root.named_modules()
        if isinstance(module, nn.Linear) and (".attn" in path or ".ff" in path or ".proj_" in path)
    }
    here = folder / name
    files = sorted(here.glob("*.safetensors"))
    if not files:
        rank = 4 if tiny else RANK
        paths = (here / f"lora{number}.safetensors" for number in range(FILES))
        files = [model.write_lora(path, modules, rank, f"{component}.", seed) for seed, path in enumerate(paths)]

    @torch.inference_mode()
    def step() -> Tensor:
        sample: Tensor = root(**inputs).sample
        return sample

    return Shape(name, note, Setting(pipe, modules, files, component), step)


Made = tuple[Any, Any, str, Mapping[str, Any], str]


def _sd15(device: torch.device, dtype: torch.dtype, free: float | None, tiny: bool) -> Made:
    unet = model.make_unet(model.SMALL if tiny else model.SD15, dtype, device)
    size = 8 if tiny else 64
    inputs = _for_unet(unet, size, device, dtype)
    return unet, model.make_pipeline(unet), "unet", inputs, f"latents {size} × {size}, batch 2"


def _sdxl(device: torch.device, dtype: torch.dtype, free: float | None, tiny: bool) -> Made:
    from diffusers import DDIMScheduler, StableDiffusionXLPipeline

    config = model.SDXL_SMALL if tiny else model.SDXL
    unet = model.make_unet(config, dtype, device)
    names = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    pipe = StableDiffusionXLPipeline(
        **dict.fromkeys(names), unet=unet, scheduler=DDIMScheduler(), add_watermarker=False
    )
    size = 8 if tiny else 128
    pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
    more = {
        "text_embeds": torch.zeros(2, pooled, device=device, dtype=dtype),
        "time_ids": torch.zeros(2, 6, device=device, dtype=dtype),
    }
    inputs = _for_unet(unet, size, device, dtype) | {"added_cond_kwargs": more}
    return unet, pipe, "unet", inputs, f"latents {size} × {size}, batch 2"


def _for_unet(unet: Any, size: int, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"sample": (2, 4, size, size), "encoder_hidden_states": (2, 77, unet.config.cross_attention_dim)}
    tensors = {name: torch.randn(shape, generator=generator).to(device, dtype) for name, shape in shapes.items()}
    return tensors | {"timestep": torch.tensor([500, 500], device=device)}


def _flux(device: torch.device, dtype: torch.dtype, free: float | None, tiny: bool) -> Made:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    whole = not tiny and (free is None or free >= WHOLE_FLUX_NEEDS)
    config = model.FLUX_TINY if tiny else model.FLUX | ({} if whole else FEW_BLOCKS)
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(**config).to(dtype)
    transformer = model.filled(transformer, device)
    names = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    pipe = FluxPipeline(**dict.fromkeys(names), transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler())
    tokens, words = (16, 8) if tiny else (4096, 512)
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "hidden_states": (1, tokens, config["in_channels"]),
        "encoder_hidden_states": (1, words, config["joint_attention_dim"]),
        "pooled_projections": (1, config["pooled_projection_dim"]),
    }
    inputs = {name: torch.randn(shape, generator=generator).to(device, dtype) for name, shape in shapes.items()}
    inputs |= {name: torch.full((1,), 0.5, device=device, dtype=dtype) for name in ("timestep", "guidance")}
    inputs |= {"img_ids": torch.zeros(tokens, 3, device=device), "txt_ids": torch.zeros(words, 3, device=device)}
    blocks = f"{config['num_layers']} + {config['num_single_layers']} blocks"
    real = "all" if whole else "not all, for want of memory" if not tiny else "tiny"
    return transformer, pipe, "transformer", inputs, f"{blocks} ({real}), {tokens} + {words} tokens, batch 1"
