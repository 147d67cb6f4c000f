"""The models that can be trained, one file a kind: how a picture and a caption come in, and what is predicted.

base               what all have in common
stable_diffusion   SD1, SD2 and SDXL: a UNet, ε or v
flow               SD3 and Flux: a transformer, flow matching
"""

from __future__ import annotations

from typing import Any

from lora_runtime.errors import TrainingError
from lora_runtime.train.models.base import Model
from lora_runtime.train.models.flow import Flux, StableDiffusion3
from lora_runtime.train.models.stable_diffusion import StableDiffusion, StableDiffusionXL

__all__ = ["Model", "StableDiffusionXL", "model_of"]

_KINDS: dict[str, type[Model]] = {
    "StableDiffusionPipeline": StableDiffusion,
    "StableDiffusionXLPipeline": StableDiffusionXL,
    "StableDiffusion3Pipeline": StableDiffusion3,
    "FluxPipeline": Flux,
}


def model_of(pipe: Any) -> Model:
    """Return what training needs of a pipeline of diffusers; TrainingError for one of another kind."""
    kind = next((_KINDS[base.__name__] for base in type(pipe).__mro__ if base.__name__ in _KINDS), None)
    if kind is None:
        raise TrainingError(f"{type(pipe).__name__}: no such pipeline can be trained; there are {', '.join(_KINDS)}")
    return kind(pipe)
