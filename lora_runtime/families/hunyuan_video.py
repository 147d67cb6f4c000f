"""HunyuanVideo, FramePack and SkyReels 1: the text stands behind the video in the layers that see both."""

from __future__ import annotations

from dataclasses import replace
from math import prod

from lora_runtime.families.base import IN_TWO_CALLS, Family, Given, Reading, Span, pieces
from lora_runtime.families.reading import patched, picture, shape_of, tokens_of

__all__ = ["HUNYUAN_VIDEO"]

_IN = (3072,)


def _history(given: Given) -> int:
    """Return how many tokens of earlier frames FramePack puts before those that it paints."""
    count = 0
    for name, cell in (
        ("latents_clean", (1, 2, 2)),
        ("latents_history_2x", (2, 4, 4)),
        ("latents_history_4x", (4, 8, 8)),
    ):
        shape = shape_of(given.get(name))
        if len(shape) == 5:
            count += prod(-(-extent // size) for extent, size in zip(shape[2:], cell, strict=True))
    return count


def _read(given: Given) -> Reading | None:
    found = patched()(given)
    if found is None or found.grid is None:
        return found
    words = Span("text", tokens_of(given.get("encoder_hidden_states")) + tokens_of(given.get("image_embeds")))
    earlier = _history(given)
    frames = (Span("reference", earlier), picture(found.grid)) if earlier else (picture(found.grid),)
    return replace(found, sequences=(frames, (*frames, words)))


HUNYUAN_VIDEO = Family(
    "HunyuanVideo",
    classes=("HunyuanVideoTransformer3DModel", "HunyuanVideoFramepackTransformer3DModel"),
    titles=("hunyuan_video", "hunyuan-video", "hunyuanvideo"),
    marks=(
        pieces("img.mlp.fc1", width=("img.mlp.fc1", _IN)),
        pieces("img.mod.linear", width=("img.mod.linear", _IN)),
        pieces("individual.token.refiner", width=("individual.token.refiner", _IN)),
        pieces("context.embedder.token.refiner", width=("context.embedder.token.refiner", _IN)),
    ),
    read=_read,
    no_place=r"context_embedder|image_projection",
    guidance=IN_TWO_CALLS,
    dialects=("hunyuan",),
)
