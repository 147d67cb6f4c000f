"""Published models by their family, without a file: the names and shapes of their weights, for `convert`.

They are made by diffusers and transformers in the published configurations, on torch's meta device, which takes no
memory for weights. The original's names come from the families' records, forward, as everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from lora_runtime.errors import LoraFileError
from lora_runtime.workbench.base_model import Model
from lora_runtime.workbench.original_names import Outline, original_names

__all__ = ["KNOWN", "known_model"]

_CLIP_L = ("CLIPTextModel", {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12})
_CLIP_H = (
    "CLIPTextModel",
    {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 23},
)
_CLIP_G = (
    "CLIPTextModelWithProjection",
    {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_attention_heads": 20,
        "num_hidden_layers": 32,
        "projection_dim": 1280,
    },
)
_SDXL_UNET = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
_SD2_UNET = {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True}
_UNET = "UNet2DConditionModel"

KNOWN: Mapping[str, Mapping[str, tuple[str, Mapping[str, Any]]]] = MappingProxyType(
    {
        "SD1": {"unet": (_UNET, {"cross_attention_dim": 768}), "text_encoder": _CLIP_L},
        "SD2": {"unet": (_UNET, _SD2_UNET), "text_encoder": _CLIP_H},
        "SDXL": {"unet": (_UNET, _SDXL_UNET), "text_encoder": _CLIP_L, "text_encoder_2": _CLIP_G},
        "Flux": {"transformer": ("FluxTransformer2DModel", {"guidance_embeds": True}), "text_encoder": _CLIP_L},
    }
)
_ORIGINAL_WITH_KOHYA = ("SDXL", "Flux")  # whose files by kohya have the original names, and others diffusers'


def known_model(family: str, spelling: str) -> Model:
    """Return the model of a family in the layout that files of that spelling have the names of.

    LoraFileError where the family is not known here, or the libraries that know its modules are not installed.
    """
    if family not in KNOWN:
        raise LoraFileError(
            f"its model is {family}, and names are known of {', '.join(KNOWN)} alone: give it, --model DIR or FILE"
        )
    try:
        made = {name: _made(kind, config) for name, (kind, config) in KNOWN[family].items()}
    except ImportError as error:
        raise LoraFileError(
            f"names of {family} are made by diffusers and transformers ({error}): install them, or give the model, "
            "--model DIR or FILE"
        ) from error
    if spelling in ("comfy", "original") or (spelling == "kohya" and family in _ORIGINAL_WITH_KOHYA):
        made = {name: root if name.startswith("text_encoder") else original_names(root) for name, root in made.items()}
    return Outline(f"{family} as it was published", made)


def _made(kind: str, config: Mapping[str, Any]) -> nn.Module:
    with torch.device("meta"):
        if kind.startswith("CLIP"):
            import transformers

            found: nn.Module = getattr(transformers, kind)(transformers.CLIPTextConfig(**config))
            return found
        import diffusers

        model: nn.Module = getattr(diffusers, kind)(**config)
        return model
