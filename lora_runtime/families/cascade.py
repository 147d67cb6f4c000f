"""Stable Cascade: a prior and a decoder, UNets of a kind of their own; the prompt's side comes first.

The attention of a block reads the text behind its own picture, in one sequence of keys.
"""

from __future__ import annotations

from lora_runtime.families.base import PROMPT_FIRST, Family, pieces
from lora_runtime.families.reading import planes

__all__ = ["CASCADE"]

CASCADE = Family(
    "Cascade",
    classes=("StableCascadeUNet",),
    titles=("stable-cascade",),
    marks=(pieces("lora.prior.unet."),),
    read=planes,
    no_place=r"attention\.to_[kv]|attn\.to_[kv]|kv_mapper|clip_|timestep_|mapper",
    guidance=PROMPT_FIRST,
    dialects=("cascade",),
)
