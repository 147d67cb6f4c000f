"""A checkpoint of Forge Neo, as the library sees models.

An engine holds `forge_objects_original`: `unet` and `clip` are patchers, around the denoiser and around a table of text
encoders. The UNets have LDM's layout, the transformers those of their makers, the text encoders that of transformers.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from modules import sd_models
from torch import nn

from lora_runtime.errors import ModelError
from lora_runtime.pipelines import ModelView
from lora_runtime.pipelines.base import compiled_later
from lora_runtime.pipelines.family import family_of

__all__ = ["family_of_loaded", "loaded_model", "view_engine"]

# By the class of the engine, where the denoiser's own class does not tell.
_FAMILIES = {
    "StableDiffusionXL": "SDXL",
    "StableDiffusionXLRefiner": "SDXL refiner",
    "Flux": "Flux",
    "Flux2": "Flux.2",
    "Chroma": "Chroma",
    "Lumina2": "Lumina 2",
    "ZImage": "Z-Image",
    "QwenImage": "Qwen-Image",
    "Wan": "Wan",
    "Anima": "Anima",
    "Krea": "Krea 2",
}


def loaded_model() -> Any | None:
    """Return the engine that is loaded, None while there is none; nothing is loaded for it."""
    model = sd_models.model_data.sd_model
    return model if getattr(model, "forge_objects_original", None) is not None else None


def family_of_loaded() -> str:
    """Return the family of the checkpoint that is loaded, or "" where it is not known."""
    model = loaded_model()
    if model is None:
        return ""
    family = _family(model, model.forge_objects_original.unet.model.diffusion_model)
    return "" if family == "unknown" else family


def view_engine(engine: Any) -> ModelView:
    """Return the denoiser and the text encoders of an engine; ModelError for one whose weights nobody can patch."""
    unet = engine.forge_objects_original.unet
    denoiser = getattr(unet.model, "diffusion_model", None)
    if not isinstance(denoiser, nn.Module):
        raise ModelError(f"a {type(engine).__name__} has no denoiser that LoRAs could change")
    if type(unet).__name__ == "NunchakuPatcher":
        raise ModelError(
            "a checkpoint for Nunchaku (SVDQuant) is painted by kernels that apply LoRAs themselves: LoRA Runtime "
            "cannot. Switch the extension off to use the built-in LoRA with it"
        )
    unet_like = hasattr(denoiser, "input_blocks") and hasattr(denoiser, "output_blocks")
    components: dict[str, nn.Module] = {"unet" if unet_like else "transformer": denoiser}
    clip = engine.forge_objects_original.clip
    encoders = clip.cond_stage_model.named_children() if clip is not None else ()
    for number, (_, encoder) in enumerate(encoders, 1):
        inner = getattr(encoder, "transformer", None)
        name = "text_encoder" if number == 1 else f"text_encoder_{number}"
        components[name] = inner if isinstance(inner, nn.Module) else encoder
    family = _family(engine, denoiser)
    listed = ", ".join(components)
    described = listed if family == "unknown" else f"{family}: {listed}"
    return ModelView(
        MappingProxyType(components),
        f"{type(engine).__name__} ({described})",
        "checkpoint",
        family,
        compiled=compiled_later(denoiser),
        titles=(type(engine).__name__,),
    )


def _family(engine: Any, denoiser: nn.Module) -> str:
    found = family_of(denoiser)
    return found if found != "unknown" else _FAMILIES.get(type(engine).__name__, "unknown")
