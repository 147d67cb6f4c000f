"""Lumina 2: the text before the picture in the main layers, each row with as many words as it has."""

from __future__ import annotations

from dataclasses import replace

from lora_runtime.families.base import IN_TWO_CALLS, Family, Given, Reading, Span, pieces
from lora_runtime.families.reading import patched, picture

__all__ = ["LUMINA_2"]


def _read(given: Given) -> Reading | None:
    found = patched()(given)
    if found is None or found.grid is None:
        return found
    mask = given.get("encoder_attention_mask")
    lengths = None if mask is None else given.once(mask, lambda tensor: tensor.sum(1).tolist())
    if not lengths or len(set(lengths)) > 1:  # the picture begins elsewhere in each row
        return replace(found, sequences=((picture(found.grid),),))
    words = Span("text", int(lengths[0]))
    return replace(found, sequences=((picture(found.grid),), (words, picture(found.grid))))


LUMINA_2 = Family(
    "Lumina2",
    classes=("Lumina2Transformer2DModel",),
    titles=("lumina",),
    marks=(pieces(width=("layers.0.attention.", (2304,))),),
    read=_read,
    no_place=r"context_refiner|time_caption_embed|cap_embedder|t_embedder|norm\d?\.linear|norm_out\.linear",
    guidance=IN_TWO_CALLS,
    dialects=("lumina",),
)
