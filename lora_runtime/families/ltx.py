"""LTX-Video and LTX-2: the video's tokens alone, with text by cross attention; LTX-2 has sound in layers of its own."""

from __future__ import annotations

from lora_runtime.families.base import Family, Given, Grid, Reading, pieces
from lora_runtime.families.reading import packed

__all__ = ["LTX"]


def _read(given: Given) -> Reading | None:
    size = tuple(given.get(name) for name in ("height", "width", "num_frames"))
    # What LTXConditionPipeline puts before the video has places of its own.
    known = all(isinstance(extent, int) for extent in size) and given.get("video_coords") is None
    return packed(given, Grid(*map(int, size)) if known else None)


LTX = Family(
    "LTX",
    classes=("LTXVideoTransformer3DModel", "LTX2VideoTransformer3DModel"),
    titles=("ltx",),
    marks=(pieces("patchify.proj"), pieces("audio.to.video.attn")),
    read=_read,
    no_place=r"caption_projection|audio|adaln|av_ca_",
    dialects=("ltx",),
)
