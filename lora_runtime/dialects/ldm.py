"""LDM, SGM and ComfyUI: what checkpoints have before the names of a component.

kohya trains SDXL on SGM's UNet, ComfyUI names all UNets so: families/unet.py has these names.
"""

from __future__ import annotations

from types import MappingProxyType

from lora_runtime.families.dialect import DENOISERS, Dialect

__all__ = ["LDM"]

LDM = Dialect(
    "ldm",
    MappingProxyType(
        {
            **dict.fromkeys(DENOISERS, ("diffusion_model.", "model.diffusion_model.")),
            "text_encoder": (
                "cond_stage_model.transformer.",
                "cond_stage_model.model.",
                "conditioner.embedders.0.transformer.",
                "text_encoders.clip_l.transformer.",
            ),
            "text_encoder_2": (
                "conditioner.embedders.1.model.",
                "conditioner.embedders.0.model.",  # the refiner has no other
                "text_encoders.clip_g.transformer.",
            ),
            "text_encoder_3": ("text_encoders.t5xxl.transformer.",),
        }
    ),
)
