"""A MODEL and a CLIP of ComfyUI, as the library sees models.

MODEL is a ModelPatcher whose `model` has the denoiser as `diffusion_model`. CLIP has a `patcher` around a module in
which each text encoder is a child: `clip_l`, `clip_g`, `t5xxl`, …, with the encoder proper as its `transformer`. UNets
have LDM's layout, the transformers those of their makers, the text encoders that of transformers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import MappingProxyType
from typing import Any

from torch import nn

from lora_runtime.errors import ModelError
from lora_runtime.pipelines import ModelView
from lora_runtime.pipelines.base import compiled_later, plain
from lora_runtime.pipelines.family import family_of

__all__ = ["names_of", "patchers_of", "view_of"]

# By the class of the model, where the denoiser's own class does not tell.
_FAMILIES = {
    "SDXL": "SDXL",
    "SDXLRefiner": "SDXL refiner",
    "SD3": "SD3",
    "Flux": "Flux",
    "Flux2": "Flux.2",
    "Chroma": "Chroma",
    "Lumina2": "Lumina 2",
    "QwenImage": "Qwen-Image",
    "WAN21": "Wan",
    "Krea2": "Krea 2",
}


def patchers_of(model: Any, clip: Any) -> list[Any]:
    """Return the ModelPatchers of a MODEL and a CLIP; `clip` may be None."""
    return [model] if clip is None else [model, clip.patcher]


def view_of(model: Any, clip: Any) -> ModelView:
    """Return the denoiser of a MODEL and the text encoders of a CLIP, None for none; ModelError without a denoiser."""
    kind = type(model.model).__name__
    denoiser = getattr(model.model, "diffusion_model", None)
    if not isinstance(denoiser, nn.Module):
        raise ModelError(f"a {kind} has no denoiser that LoRAs could change")
    denoiser = plain(denoiser)
    unet_like = hasattr(denoiser, "input_blocks") and hasattr(denoiser, "output_blocks")
    components: dict[str, nn.Module] = {"unet" if unet_like else "transformer": denoiser}
    if clip is not None:
        components |= dict(_text_encoders(clip.cond_stage_model))
    found = family_of(denoiser)
    family = found if found != "unknown" else _FAMILIES.get(kind, "unknown")
    listed = ", ".join(components)
    described = listed if family == "unknown" else f"{family}: {listed}"
    return ModelView(
        MappingProxyType(components),
        f"{kind} ({described})",
        "checkpoint",
        family,
        compiled=compiled_later(*components.values()),
        titles=(kind,),
    )


def _text_encoders(stage: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield (component, module) for each text encoder that is there, by the number that files have for it.

    A checkpoint can lack one of several encoders; the others keep their numbers.
    """
    three = hasattr(stage, "clip_g") and hasattr(stage, "t5xxl")
    fixed = {"clip_l": 1, "clip_h": 1, "clip_g": 2, "t5xxl": 3 if three else 2 if hasattr(stage, "clip_l") else 1}
    following = 1
    for name, child in stage.named_children():
        encoder = getattr(child, "transformer", None)
        if not isinstance(encoder, nn.Module):
            continue
        number = fixed.get(name, following)
        following = number + 1
        yield ("text_encoder" if number == 1 else f"text_encoder_{number}"), plain(encoder)


def names_of(root: nn.Module, wanted: Sequence[nn.Module]) -> dict[int, str]:
    """Return the names that the program has for these modules inside of a root, by their ids; others are left out."""
    ids = {id(module) for module in wanted}
    return {id(module): name for name, module in root.named_modules() if id(module) in ids}
