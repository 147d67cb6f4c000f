"""Stable Cascade: a prior and a decoder, UNets of a kind of their own; the prompt's side comes first.

The attention of a block reads the text behind its own picture, in one sequence of keys.

The original's attention is torch.nn.MultiheadAttention, kohya's is that with q, k and v apart; diffusers has neither's
level `attn`. `lora_prior_unet_` is for stage C, which diffusers calls the prior.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from types import MappingProxyType

from lora_runtime.families.base import PROMPT_FIRST, Family, pieces
from lora_runtime.families.dialect import WHOLE, Dialect, Part
from lora_runtime.families.reading import planes

__all__ = ["CASCADE", "CASCADE_NAMES"]

_ATTENTION = re.compile(r"((?:down|up)_blocks\.\d+\.\d+\.attention)\.(.+)")
_FUSED = "attn"
_SIDES = ("to_q", "to_k", "to_v")
_KOHYA = {"to_out.0": "attn.out_proj", **{side: f"attn.{side}" for side in _SIDES}}
_DIFFUSERS = {theirs: ours for ours, theirs in _KOHYA.items()}


def _translations(paths: Sequence[str]) -> Iterator[tuple[str, str, Part]]:
    """Yield each attention's names in the other layouts, for q, k and v one a part; nothing for other models."""
    for path in paths:
        match = _ATTENTION.fullmatch(path)
        if match is None:
            continue
        attention, inner = match.groups()
        if inner == _FUSED:
            for index, side in enumerate(_SIDES):
                yield path, f"{attention}.{side}", Part(index, 3)
                yield path, f"{path}.{side}", Part(index, 3)
        elif inner in _KOHYA:
            yield path, f"{attention}.{_KOHYA[inner]}", WHOLE
        elif inner in _DIFFUSERS:
            yield path, f"{attention}.{_DIFFUSERS[inner]}", WHOLE


CASCADE_NAMES = Dialect(
    "cascade",
    MappingProxyType({"prior": ("lora_prior_unet_",), "text_encoder": ("lora_prior_te_",)}),
    translations=_translations,
)


CASCADE = Family(
    "Cascade",
    classes=("StableCascadeUNet",),
    titles=("stable-cascade",),
    marks=(pieces("lora.prior.unet."),),
    read=planes,
    no_place=r"attention\.to_[kv]|attn\.to_[kv]|kv_mapper|clip_|timestep_|mapper",
    guidance=PROMPT_FIRST,
    dialects=(CASCADE_NAMES,),
)
