"""What files call the modules of a model, in the spelling that most programs read.

    SD1, SD2         lora_unet_down_blocks_0_attentions_0_…, lora_te_text_model_encoder_layers_0_…
    SDXL             lora_unet_input_blocks_4_1_…, lora_te1_text_model_…, lora_te2_text_model_…
    SD3, Flux        transformer.transformer_blocks.0.…, text_encoder.text_model.encoder.layers.0.…

The first two are kohya's, whose SDXL has the original blocks' names. Its names for Flux are those of the original's
fused layers, which factors trained apart do not fit; diffusers' names for them are read by ComfyUI and the Forges too.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from lora_runtime.families.unet import UNET_NAMES
from lora_runtime.train.models import Model, StableDiffusionXL

__all__ = ["stems_of"]

_KOHYA = {"unet": "lora_unet_", "text_encoder": "lora_te_", "text_encoder_2": "lora_te2_"}


def stems_of(model: Model, component: str, root: nn.Module) -> Mapping[str, str]:
    """Return the name of each module of a component by its path."""
    paths = [path for path, _ in root.named_modules() if path]
    if component.startswith("text_encoder"):
        # transformers 5 has no level `text_model`, names in files always have.
        others = {path: path if path.startswith("text_model.") else f"text_model.{path}" for path in paths}
    else:
        others = {}
    if component == "unet" and isinstance(model, StableDiffusionXL):
        others = dict(UNET_NAMES.spellings(paths))
    if model.component != "unet":
        return {path: f"{component}.{others.get(path, path)}" for path in paths}
    prefix = _KOHYA[component]
    if component == "text_encoder" and isinstance(model, StableDiffusionXL):
        prefix = "lora_te1_"
    return {path: prefix + others.get(path, path).replace(".", "_") for path in paths}
