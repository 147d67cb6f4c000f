"""HunyuanImage 2.1 and its refiner: the text stands behind the picture in the layers that see both."""

from __future__ import annotations

from dataclasses import replace

from lora_runtime.families.base import IN_TWO_CALLS, Family, Given, Reading, Span, pieces
from lora_runtime.families.hunyuan_video import HUNYUAN_VIDEO_NAMES
from lora_runtime.families.reading import patched, picture, tokens_of

__all__ = ["HUNYUAN_IMAGE"]

_IN = (3584,)


def _read(given: Given) -> Reading | None:
    found = patched()(given)
    if found is None or found.grid is None:
        return found
    words = Span(
        "text", sum(tokens_of(given.get(name)) for name in ("encoder_hidden_states", "encoder_hidden_states_2"))
    )
    return replace(found, sequences=((picture(found.grid),), (picture(found.grid), words)))


HUNYUAN_IMAGE = Family(
    "HunyuanImage",
    classes=("HunyuanImageTransformer2DModel",),
    titles=("hunyuan-image", "hunyuanimage"),
    marks=tuple(
        pieces(piece, width=(piece, _IN))
        for piece in ("img.mlp.fc1", "img.mod.linear", "individual.token.refiner", "context.embedder.token.refiner")
    ),
    read=_read,
    no_place=r"context_embedder",
    guidance=IN_TWO_CALLS,
    dialects=(HUNYUAN_VIDEO_NAMES,),
)
