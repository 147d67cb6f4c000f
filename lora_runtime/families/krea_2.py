"""Krea 2: the text before the picture in every block."""

from __future__ import annotations

from math import prod
from types import MappingProxyType

from lora_runtime.families.base import IN_TWO_CALLS, Family, Given, Grid, Reading, Span, pieces
from lora_runtime.families.dialect import Dialect
from lora_runtime.families.layout import Layout, inside
from lora_runtime.families.reading import picture, shape_of

__all__ = ["KREA_2", "KREA_2_NAMES"]

_KREA_BLOCK = {
    "attn.wq": "attn.to_q",
    "attn.wk": "attn.to_k",
    "attn.wv": "attn.to_v",
    "attn.wo": "attn.to_out.0",
    "attn.gate": "attn.to_gate",
    "mlp.gate": "ff.gate",
    "mlp.up": "ff.up",
    "mlp.down": "ff.down",
}
_KREA = Layout(
    original=("first", "tproj.1", "blocks.0.attn.wq"),
    diffusers=("img_in", "time_mod_proj", "transformer_blocks.0.attn.to_gate"),
    table=MappingProxyType(
        {
            "first": "img_in",
            "tmlp.0": "time_embed.linear_1",
            "tmlp.2": "time_embed.linear_2",
            "tproj.1": "time_mod_proj",
            "txtmlp.1": "txt_in.linear_1",
            "txtmlp.3": "txt_in.linear_2",
            "txtfusion.projector": "text_fusion.projector",
            "last.linear": "final_layer.linear",
            **inside("blocks.#", "transformer_blocks.#", _KREA_BLOCK),
            **inside("txtfusion.layerwise_blocks.#", "text_fusion.layerwise_blocks.#", _KREA_BLOCK),
            **inside("txtfusion.refiner_blocks.#", "text_fusion.refiner_blocks.#", _KREA_BLOCK),
        }
    ),
)
KREA_2_NAMES = Dialect("krea 2", translations=_KREA.translations)


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
    dialects=(KREA_2_NAMES,),
)
