"""Flux 2 and its Klein models: Flux with four numbers for the place of a token, and one modulation for all blocks."""

from __future__ import annotations

from lora_runtime.families.base import IN_TWO_CALLS, Family, pieces
from lora_runtime.families.reading import with_ids

__all__ = ["FLUX_2"]

FLUX_2 = Family(
    "Flux2",
    classes=("Flux2Transformer2DModel",),
    titles=("flux2", "flux-2"),
    marks=(pieces("double.stream.modulation"), pieces("to.qkv.mlp.proj")),
    read=with_ids,
    no_place=r"stream_modulation",
    guidance=IN_TWO_CALLS,
    dialects=("flux",),
)
