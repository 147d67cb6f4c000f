"""Flux 2 and its Klein models: as Flux, with a fourth number for the place of a token and modulations for all blocks."""

from __future__ import annotations

from lora_runtime.families.base import IN_TWO_CALLS, Family
from lora_runtime.families.reading import with_ids

__all__ = ["FLUX_2"]

FLUX_2 = Family(
    "Flux2",
    classes=("Flux2Transformer2DModel",),
    titles=("flux2", "flux-2"),
    read=with_ids,
    no_place=r"stream_modulation",
    guidance=IN_TWO_CALLS,
    dialects=("flux",),
)
