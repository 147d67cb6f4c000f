"""Short runs: a few pictures, tiny pipelines with random weights, and what a run with them is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import accelerate  # noqa: F401 - without these nothing can be trained, and what uses this is skipped
import diffusers
import peft  # noqa: F401
import tiny
import torch
from PIL import Image
from torch import Tensor, nn

from lora_runtime.train import Config

TEXT, POOLED = 8, 12  # widths of the two encoders of the flow models


def pictures(folder: Path, count: int = 3) -> Path:
    """Write pictures of 32 × 32, and the last of 32 × 48, as noise from a seed, with captions; return their folder."""
    generator = torch.Generator().manual_seed(7)
    home = folder / "training" / "2_dot"
    home.mkdir(parents=True)
    for number in range(count):
        height = 48 if number == count - 1 else 32
        pixels = (torch.rand(height, 32, 3, generator=generator) * 255).to(torch.uint8)
        Image.fromarray(pixels.numpy()).save(home / f"{number}.png")
        (home / f"{number}.txt").write_text(f"a dot {'abc'[number % 3]}", encoding="utf-8")
    return home.parent


def config(folder: Path, **over: Any) -> Config:
    """Return what a run of four steps on the pictures in `folder` is told; its samples take two steps."""
    data = folder / "training"
    told: dict[str, Any] = {
        "train_data_dir": data if data.exists() else pictures(folder),
        "output_dir": folder / "out",
        "output_name": "dot",
        "resolution": (32, 32),
        "min_bucket_reso": 16,
        "max_bucket_reso": 48,
        "bucket_reso_steps": 16,
        "train_batch_size": 2,
        "max_train_steps": 4,
        "network_dim": 2,
        "network_alpha": 1.0,
        "learning_rate": 1e-2,
        "save_precision": "float32",
        "sample_prompts": ("a dot <lora:dot:1> --s 2",),
    }
    return Config(**{**told, **over})


def flow_pipeline(kind: str) -> Any:
    """Return a StableDiffusion3Pipeline without its T5, or a FluxPipeline, "sd3" or "flux"."""
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(5)
    common: dict[str, Any] = {"in_channels": 4, "num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 2}
    parts: dict[str, Any] = {
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        "vae": _autoencoder(),
        "tokenizer": tiny.tokenizer(),
        "tokenizer_2": tiny.tokenizer(),
    }
    if kind == "sd3":
        first, second = (tiny.text_encoder(TEXT, projection=True, seed=seed) for seed in (1, 3))
        transformer = diffusers.SD3Transformer2DModel(
            **common,
            sample_size=16,
            out_channels=4,
            joint_attention_dim=2 * TEXT,
            caption_projection_dim=16,
            pooled_projection_dim=2 * TEXT,
            pos_embed_max_size=16,
        )
        parts |= {"text_encoder": first, "text_encoder_2": second, "text_encoder_3": None, "tokenizer_3": None}
        made = diffusers.StableDiffusion3Pipeline(transformer=_still(transformer), **parts)
    else:
        t5 = T5EncoderModel(T5Config(vocab_size=64, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2))
        transformer = diffusers.FluxTransformer2DModel(
            **common | {"in_channels": 16, "num_layers": 1, "attention_head_dim": 16},
            num_single_layers=1,
            joint_attention_dim=16,
            pooled_projection_dim=TEXT,
            axes_dims_rope=(4, 6, 6),
            guidance_embeds=True,
        )
        parts |= {"text_encoder": tiny.text_encoder(TEXT), "text_encoder_2": _still(t5)}
        made = diffusers.FluxPipeline(transformer=_still(transformer), **parts)
    made.set_progress_bar_config(disable=True)
    return made


def small() -> Any:
    """Return a StableDiffusionPipeline with four attention blocks and no more layers than it must have."""
    pipe = tiny.pipeline("sd1")
    torch.manual_seed(4)
    pipe.unet = _still(
        diffusers.UNet2DConditionModel(
            sample_size=16,
            layers_per_block=1,
            norm_num_groups=2,
            cross_attention_dim=tiny.WIDTH["sd1"],
            block_out_channels=(4, 8),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            attention_head_dim=2,
        )
    )
    return pipe


def pipeline(kind: str) -> Any:
    """Return a tiny pipeline: small, sd1, sd2, sdxl, sd3 or flux."""
    if kind == "small":
        return small()
    return flow_pipeline(kind) if kind in ("sd3", "flux") else tiny.pipeline(kind)  # type: ignore[arg-type]


def painted(pipe: Any, prompt: str = "a dot") -> Tensor:
    """Return the latents that a pipeline paints in one step, from the same noise each time."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        found: Tensor = pipe(
            prompt, num_inference_steps=1, width=32, height=32, generator=generator, output_type="latent"
        ).images
    return found


def bytes_of(pipe: Any) -> dict[str, Tensor]:
    """Return copies of all tensors of a pipeline."""
    return {
        f"{name}.{key}": value.detach().clone()
        for name, part in pipe.components.items()
        if isinstance(part, nn.Module)
        for key, value in part.state_dict().items()
        if isinstance(value, Tensor)
    }


def _still(model: nn.Module) -> nn.Module:
    return model.eval().requires_grad_(False)


def _autoencoder() -> Any:
    return _still(
        diffusers.AutoencoderKL(
            block_out_channels=(4, 4),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=2,
            sample_size=32,
            shift_factor=0.1,
            scaling_factor=1.5,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
    )
