"""Models with the structure of the real ones and a few thousand parameters, and adapter files for them.

Nothing is downloaded. Weights are random with a fixed seed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

Kind = Literal["sd1", "sd2", "sdxl"]

WIDTH = {"sd1": 12, "sd2": 16, "sdxl": 20}  # of the text that the UNet attends to; sdxl: 12 + 8
SECOND_WIDTH = 8
TOKENS = 16


def unet(kind: Kind = "sd1", seed: int = 0) -> Any:
    """Return a UNet2DConditionModel with the blocks of SD1, SD2 or SDXL."""
    from diffusers import UNet2DConditionModel

    config: dict[str, Any] = {
        "sample_size": 16,
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": 2,
        "cross_attention_dim": WIDTH[kind],
    }
    if kind == "sdxl":
        config |= {
            "block_out_channels": (4, 8, 12),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 3),
            "attention_head_dim": (2, 2, 2),
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 4,
            "projection_class_embeddings_input_dim": 6 * 4 + SECOND_WIDTH,
        }
    else:
        config |= {
            "block_out_channels": (4, 8, 12, 12),
            "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
            "attention_head_dim": 2,
            "use_linear_projection": kind == "sd2",
        }
    torch.manual_seed(seed)
    return UNet2DConditionModel(**config).eval().requires_grad_(False)


def text_encoder(width: int = WIDTH["sd1"], *, projection: bool = False, layers: int = 2, seed: int = 1) -> Any:
    """Return a CLIPTextModel, or a CLIPTextModelWithProjection."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=64,
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        eos_token_id=63,
        bos_token_id=62,
        pad_token_id=63,
    )
    torch.manual_seed(seed)
    encoder = CLIPTextModelWithProjection(config) if projection else CLIPTextModel(config)
    return encoder.eval().requires_grad_(False)


def tokenizer() -> Any:
    """Return a CLIPTokenizer that knows the letters and digits."""
    import json

    from transformers import CLIPTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz,.<!?"  # twice as many tokens, and two more, are all that the encoder has
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    vocabulary |= {"<|startoftext|>": 62, "<|endoftext|>": 63}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
        (Path(folder) / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
        return CLIPTokenizer.from_pretrained(folder, model_max_length=TOKENS)


def autoencoder(seed: int = 2) -> Any:
    """Return an AutoencoderKL that makes each latent 2 × 2 pixels."""
    from diffusers import AutoencoderKL

    torch.manual_seed(seed)
    return (
        AutoencoderKL(
            block_out_channels=(4, 4),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=2,
            sample_size=32,
        )
        .eval()
        .requires_grad_(False)
    )


def pipeline(kind: Kind = "sd1") -> Any:
    """Return a StableDiffusionPipeline or StableDiffusionXLPipeline; a picture of 32 × 32 takes well under a second."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline

    parts: dict[str, Any] = {
        "vae": autoencoder(),
        "tokenizer": tokenizer(),
        "unet": unet(kind),
        "scheduler": DDIMScheduler(steps_offset=1, clip_sample=False),
    }
    if kind == "sdxl":
        second = text_encoder(SECOND_WIDTH, projection=True, seed=3)
        made = StableDiffusionXLPipeline(
            **parts,
            text_encoder=text_encoder(WIDTH["sdxl"] - SECOND_WIDTH),
            text_encoder_2=second,
            tokenizer_2=tokenizer(),
            add_watermarker=False,
        )
    else:
        made = StableDiffusionPipeline(
            **parts,
            text_encoder=text_encoder(WIDTH[kind]),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    made.set_progress_bar_config(disable=True)
    return made


def factors(weight: Tensor, rank: int, generator: torch.Generator, std: float = 0.1) -> tuple[Tensor, Tensor]:
    """Return random (up, down) for a linear or convolution weight, in the shapes in which kohya stores them."""
    down_shape = (rank, *weight.shape[1:])
    up_shape = (weight.shape[0], rank, *(1 for _ in weight.shape[2:]))
    return (
        torch.randn(up_shape, generator=generator) * std,
        torch.randn(down_shape, generator=generator) * std,
    )


def kohya_tensors(
    model: nn.Module,
    *,
    prefix: str,
    rank: int = 2,
    alpha: float | None = 1.0,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    std: float = 0.1,
    where: Callable[[str, nn.Module], bool] | None = None,
    rename: Callable[[str], str] = lambda path: path,
) -> dict[str, Tensor]:
    """Return a kohya LoRA for one component: for all linear layers and convolutions, or those that `where` accepts."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if not isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)) or not isinstance(weight, Tensor):
            continue
        if where is not None and not where(path, module):
            continue
        stem = prefix + rename(path).replace(".", "_")
        up, down = factors(weight, rank, generator, std)
        tensors[f"{stem}.lora_up.weight"] = up.to(dtype)
        tensors[f"{stem}.lora_down.weight"] = down.to(dtype)
        if alpha is not None:
            tensors[f"{stem}.alpha"] = torch.tensor(alpha, dtype=dtype)
    return tensors


KOHYA_PREFIXES = {
    "unet": "lora_unet_",
    "text_encoder": "lora_te_",
    "text_encoder_2": "lora_te2_",
}


def write_kohya_lora(
    path: str | Path,
    model: Any,
    rank: int = 2,
    *,
    components: Iterable[str] = ("unet", "text_encoder", "text_encoder_2"),
    alpha: float | None = 1.0,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    std: float = 0.1,
    where: Callable[[str, nn.Module], bool] | None = None,
    metadata: dict[str, str] | None = None,
) -> dict[str, Tensor]:
    """Write a kohya LoRA for a pipeline (or a UNet), in the diffusers block names that kohya uses for SD1 and SD2.

    Text encoders are named with the level `text_model`, as all files in circulation are. Returns the tensors written.
    """
    parts = {"unet": model} if isinstance(model, nn.Module) else dict(model.components)
    prefixes = dict(KOHYA_PREFIXES)
    if parts.get("text_encoder_2") is not None:
        prefixes["text_encoder"] = "lora_te1_"
    tensors: dict[str, Tensor] = {}
    for index, name in enumerate(components):
        component = parts.get(name)
        if component is None:
            continue
        tensors |= kohya_tensors(
            component,
            prefix=prefixes[name],
            rank=rank,
            alpha=alpha,
            dtype=dtype,
            seed=seed * 10 + index,
            std=std,
            where=where,
            rename=_with_text_model if name.startswith("text_encoder") else str,
        )
    save_file(tensors, str(path), metadata=metadata or {})
    return tensors


def _with_text_model(path: str) -> str:
    return path if path.startswith(("text_model.", "text_projection")) else f"text_model.{path}"


# The published models' unet/config.json: the fields that shape the network.
_REAL_SD1 = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "layers_per_block": 2,
}
REAL_UNETS: dict[Kind, dict[str, Any]] = {
    "sd1": _REAL_SD1,
    "sd2": _REAL_SD1
    | {
        "sample_size": 96,
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    },
    "sdxl": {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
        "transformer_layers_per_block": (1, 2, 10),
        "layers_per_block": 2,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}


@cache
def real_unet(kind: Kind) -> Any:
    """Return the UNet of SD1, SD2 or SDXL in its real size, on the meta device: no memory for its weights."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(**REAL_UNETS[kind])


def weighted_paths(model: nn.Module) -> list[str]:
    """Return the paths of all modules that own a weight."""
    return [name.removesuffix(".weight") for name, _ in model.named_parameters() if name.endswith(".weight")]
