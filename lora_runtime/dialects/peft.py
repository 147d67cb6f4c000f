"""PEFT and diffusers: the component's name in the pipeline, then the path as it is; or the path alone."""

from __future__ import annotations

from types import MappingProxyType

from lora_runtime.families.dialect import DENOISERS, Dialect

__all__ = ["PEFT"]

_COMPONENTS = (*DENOISERS, "text_encoder", "text_encoder_2", "text_encoder_3")

PEFT = Dialect(
    "peft",
    MappingProxyType(
        {
            # PEFT wraps the model as base_model.model, before or after the pipeline's name for it. Some trainers call
            # every denoiser a UNet.
            name: tuple(
                spelled.format(each)
                for each in ((name, "unet") if name == "transformer" else (name,))
                for spelled in ("{}.", "{}.base_model.model.", "base_model.model.{}.")
            )
            for name in _COMPONENTS
        }
    ),
)
