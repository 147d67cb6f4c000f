"""Krea 2: the text before the picture in every block."""

from __future__ import annotations

from math import prod

from lora_runtime.families.base import IN_TWO_CALLS, Family, Given, Grid, Reading, Span, pieces
from lora_runtime.families.reading import picture, shape_of

__all__ = ["KREA_2"]


def _read(given: Given) -> Reading | None:
    latents, text, ids = (given.get(name) for name in ("hidden_states", "encoder_hidden_states", "position_ids"))
    shape = shape_of(latents)
    if len(shape) != 3:
        return None
    words = text.shape[1] if hasattr(text, "shape") else 0
    last = None if ids is None else given.once(ids, lambda table: table[words:].amax(0).tolist())
    grid = None if last is None else Grid(int(last[1]) + 1, int(last[2]) + 1)
    if grid is None or prod(grid) != shape[1]:
        return Reading(shape[0], latents, text, None, ())
    return Reading(shape[0], latents, text, grid, ((picture(grid),), (Span("text", words), picture(grid))))


KREA_2 = Family(
    "Krea2",
    classes=("Krea2Transformer2DModel",),
    titles=("krea2", "krea-2", "krea_2"),
    marks=(pieces("blocks.0.attn.wq."), pieces("txtfusion."), pieces("text.fusion.layerwise.blocks")),
    read=_read,
    no_place=r"text_fusion|txtfusion|txt_in|time_embed|time_mod",
    guidance=IN_TWO_CALLS,
    dialects=("newer",),
)
