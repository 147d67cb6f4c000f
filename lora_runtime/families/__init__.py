"""Families: all that is known of each family of models, one record each. A new one is a file and a line in `FAMILIES`.

The order counts where a file's keys fit several: the first is taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from lora_runtime.families.ace_step import ACE_STEP
from lora_runtime.families.allegro import ALLEGRO, LATTE
from lora_runtime.families.aura_flow import AURA_FLOW
from lora_runtime.families.base import Evidence, Family, Given, Grid, Guidance, Reading, Row, Side, Span
from lora_runtime.families.cascade import CASCADE
from lora_runtime.families.chroma import CHROMA
from lora_runtime.families.cogvideox import COGVIDEOX
from lora_runtime.families.cogview import COGVIEW_3, COGVIEW_4
from lora_runtime.families.cosmos import ANIMA, COSMOS, COSMOS_OR_ANIMA
from lora_runtime.families.flux import FLUX
from lora_runtime.families.flux_2 import FLUX_2
from lora_runtime.families.flux_3 import FLUX_3
from lora_runtime.families.hidream import HIDREAM
from lora_runtime.families.hunyuan_dit import HUNYUAN_DIT
from lora_runtime.families.hunyuan_image import HUNYUAN_IMAGE
from lora_runtime.families.hunyuan_video import HUNYUAN_VIDEO
from lora_runtime.families.hunyuan_video_15 import HUNYUAN_VIDEO_15
from lora_runtime.families.ideogram_4 import IDEOGRAM_4
from lora_runtime.families.krea_2 import KREA_2
from lora_runtime.families.ltx import LTX
from lora_runtime.families.lumina import LUMINA
from lora_runtime.families.lumina_2 import LUMINA_2
from lora_runtime.families.minimax_h3 import MINIMAX_H3
from lora_runtime.families.mochi import MOCHI
from lora_runtime.families.pixart import PIXART
from lora_runtime.families.qwen_image import QWEN_IMAGE
from lora_runtime.families.sana import SANA, SANA_VIDEO
from lora_runtime.families.sd3 import SD3
from lora_runtime.families.unet import BY_TEXT_WIDTH, FRAMES_FIRST, SD1, SD2, SDXL, SDXL_REFINER, UNET
from lora_runtime.families.wan import WAN
from lora_runtime.families.z_image import Z_IMAGE

__all__ = [
    "FAMILIES",
    "UNKNOWN",
    "Evidence",
    "Family",
    "Given",
    "Grid",
    "Guidance",
    "Reading",
    "Row",
    "Side",
    "Span",
    "family_called",
    "family_of",
    "has_no_place",
    "has_no_rows",
    "made_for",
    "titled",
]

UNKNOWN = "unknown"
FAMILIES: tuple[Family, ...] = (
    CASCADE,
    HUNYUAN_VIDEO_15,
    HUNYUAN_VIDEO,
    HUNYUAN_IMAGE,
    HUNYUAN_DIT,
    SD3,
    AURA_FLOW,
    HIDREAM,
    CHROMA,
    KREA_2,
    FLUX_3,
    FLUX_2,
    FLUX,
    QWEN_IMAGE,
    Z_IMAGE,
    LUMINA_2,
    LUMINA,
    ANIMA,
    WAN,
    MOCHI,
    LTX,
    COGVIDEOX,
    COGVIEW_3,
    COGVIEW_4,
    PIXART,
    COSMOS,
    COSMOS_OR_ANIMA,
    SANA,
    SANA_VIDEO,
    ALLEGRO,
    LATTE,
    IDEOGRAM_4,
    MINIMAX_H3,
    ACE_STEP,
    SDXL,
    SD2,
    SD1,
    SDXL_REFINER,
    UNET,
    FRAMES_FIRST,
)
_BY_CLASS = {title: family for family in FAMILIES for title in family.classes}
_BY_NAME = {family.name: family for family in FAMILIES}


def titled(text: str) -> str:
    """Return the family that a model's name in a file's metadata means, or "unknown"."""
    text = text.lower()
    found = [(len(piece), f.name) for f in FAMILIES for piece in f.titles if piece in text]
    return max(found, default=(0, UNKNOWN))[1]  # "flux2" says more than "flux"


def made_for(evidence: Evidence) -> str:
    """Return the family whose mark a file's keys bear, or "unknown"."""
    return next((f.name for f in FAMILIES if any(mark(evidence) for mark in f.marks)), UNKNOWN)


def family_of(denoiser: Any) -> Family | None:
    """Return the record of a live denoiser, or None where there is none.

    Its class, or one that this is made from, tells; of a UNet the width of the text that it attends to.
    """
    if type(getattr(denoiser, "joint_blocks", None)).__name__ == "ModuleList":  # SD3's in its original form
        return SD3
    found = family_called(kind.__name__ for kind in type(denoiser).__mro__)
    if found is None and hasattr(denoiser, "input_blocks") and hasattr(denoiser, "output_blocks"):
        found = UNET
    return _by_width(_text_width(denoiser)) if found is UNET else found


def family_called(classes: Iterable[str], text_width: object = None) -> Family | None:
    """Return the record of a denoiser by the name of its class, or of one that this is made from; None for none.

    A UNet's family is told by the width of the text that it attends to, as a config has it: a number, or one a block.
    """
    found = next((_BY_CLASS[name] for name in classes if name in _BY_CLASS), None)
    return _by_width(_one_width(text_width)) if found is UNET and text_width is not None else found


def _by_width(width: int | None) -> Family:
    return UNET if width is None or width not in BY_TEXT_WIDTH else _BY_NAME[BY_TEXT_WIDTH[width]]


def _one_width(given: object) -> int | None:
    if isinstance(given, (list, tuple)) and len(set(given)) == 1:
        given = given[0]
    return given if isinstance(given, int) else None


def _text_width(unet: Any) -> int | None:
    """Return the width of the text that a UNet attends to, as its config says, else the first of its layers."""
    width = getattr(getattr(unet, "config", None), "cross_attention_dim", None)
    if width is None and hasattr(unet, "input_blocks"):
        layers = (module for path, module in unet.named_modules() if path.endswith("attn2.to_k"))
        width = getattr(next(layers, None), "in_features", None)
    return _one_width(width)


@lru_cache(maxsize=65536)
def _matches(pattern: str, path: str) -> bool:
    return bool(pattern) and re.search(pattern, path) is not None


# Layers of any denoiser that see the text, the time or the picture's size: diffusers' names, and the originals'.
_NO_PLACE = (
    r"attn2\.to_[kv]\b|add_[kqv]_proj|to_add_out|ff_context|context_block|context_embedder|norm1_context|txt_|time_|"
    r"timestep_|emb_layers|label_emb|add_embedding|adaLN|modulation|_mod\b|norm\d?\.linear|norm_out\.linear|vector_in|"
    r"norm_added_[qk]|to_[kv]_ip|encoder_hid_proj"
)


def has_no_place(family: Family | None, path: str) -> bool:
    """Return whether a layer sees nothing that has a place in the picture."""
    return _matches(_NO_PLACE, path) or (family is not None and _matches(family.no_place, path))


def has_no_rows(family: Family | None, path: str) -> bool:
    """Return whether the batch of a layer is not that of the call."""
    return family is not None and _matches(family.no_rows, path)
