"""Flux, its Kontext, Fill and Control models, and Krea's.

The latents come packed, 2 × 2 to a token, with the place of each beside them; reference pictures follow them. Double
blocks see pictures and text in layers of their own, single blocks the text before the pictures.
"""

from __future__ import annotations

from lora_runtime.families.base import IN_TWO_CALLS, Family, pieces
from lora_runtime.families.reading import with_ids

__all__ = ["FLUX"]

_BFL = ("img.mod.lin.", "txt.mod.lin.", "modulation.lin.")
_DIFFUSERS = (".norm.linear", ".norm1.linear", ".norm1.context.linear", "time.text.embed")
_LAST = ("single.transformer.blocks.37.", "transformer.blocks.18.")  # other models of this kind have fewer blocks
_XLABS = ("processor.qkv.lora", "processor.proj.lora")

FLUX = Family(
    "Flux",
    classes=("FluxTransformer2DModel",),
    titles=("flux",),
    # Without these a file may as well be Chroma's, whose other layers are called the same and are as wide.
    marks=(
        *(pieces(blocks, piece) for blocks in ("double.blocks", "single.blocks") for piece in _BFL),
        *(pieces(last, piece) for last in _LAST for piece in _DIFFUSERS),
        *map(pieces, _XLABS),
    ),
    read=with_ids,
    guidance=IN_TWO_CALLS,
    dialects=("flux",),
)
