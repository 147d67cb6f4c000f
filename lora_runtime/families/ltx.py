"""LTX-Video and LTX-2: the video's tokens alone, with text by cross attention; LTX-2 has sound in layers of its own."""

from __future__ import annotations

from math import prod

from lora_runtime.families.base import Family, Given, Grid, Reading, pieces
from lora_runtime.families.reading import packed, tokens_of

__all__ = ["LTX"]


def _read(given: Given) -> Reading | None:
    size = tuple(given.get(name) for name in ("height", "width", "num_frames"))
    known = all(isinstance(extent, int) for extent in size)
    grid = Grid(*map(int, size)) if known else None
    # What conditions a video stands before or behind it, with places of its own; without it all tokens are the video's.
    if (
        grid is not None
        and given.get("video_coords") is not None
        and tokens_of(given.get("hidden_states")) != prod(grid)
    ):
        grid = None
    return packed(given, grid)


LTX = Family(
    "LTX",
    classes=("LTXVideoTransformer3DModel", "LTX2VideoTransformer3DModel"),
    titles=("ltx",),
    marks=(pieces("patchify.proj"), pieces("audio.to.video.attn")),
    read=_read,
    no_place=r"caption_projection|audio|adaln|av_ca_",
    placeless=("LTXConditionPipeline", "LTXI2VLongMultiPromptPipeline"),
    dialects=("ltx",),
)
