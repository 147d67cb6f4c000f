"""CogVideoX and ConsisID: frames before channels, the text before the video in every layer of a block."""

from __future__ import annotations

from lora_runtime.families.base import Family
from lora_runtime.families.reading import patched

__all__ = ["COGVIDEOX"]

COGVIDEOX = Family(
    "CogVideoX",
    classes=("CogVideoXTransformer3DModel", "ConsisIDTransformer3DModel"),
    titles=("cogvideo",),
    read=patched("text first", frames=1),
    no_place=r"text_proj|ofs_|norm[12]\.linear",
)
