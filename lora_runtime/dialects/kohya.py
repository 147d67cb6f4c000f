"""kohya-ss/sd-scripts and LyCORIS: a prefix for the component, then the path with `_` for `.`.

kohya's trainer of OFT has prefixes of its own.
"""

from __future__ import annotations

from types import MappingProxyType

from lora_runtime.families.dialect import DENOISERS, Dialect

__all__ = ["KOHYA"]

KOHYA = Dialect(
    "kohya",
    MappingProxyType(
        {
            **dict.fromkeys(DENOISERS, ("lora_unet_", "lora_transformer_", "lora_flux_", "lycoris_", "oft_unet_")),
            "text_encoder": ("lora_te_", "lora_te1_", "oft_te_", "oft_te1_"),
            "text_encoder_2": ("lora_te2_", "oft_te2_"),
            "text_encoder_3": ("lora_te3_",),
        }
    ),
)
