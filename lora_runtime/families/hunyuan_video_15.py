"""HunyuanVideo 1.5: video and text in layers of their own."""

from __future__ import annotations

from lora_runtime.families.base import IN_TWO_CALLS, Family, pieces
from lora_runtime.families.hunyuan_video import HUNYUAN_VIDEO_NAMES
from lora_runtime.families.reading import patched

__all__ = ["HUNYUAN_VIDEO_15"]

HUNYUAN_VIDEO_15 = Family(
    "HunyuanVideo1.5",
    classes=("HunyuanVideo15Transformer3DModel",),
    titles=("hunyuan-video-1.5", "hunyuanvideo-1.5", "hunyuanvideo1.5", "hunyuan_video_1_5"),
    marks=(pieces("context.embedder.token.refiner", width=("context.embedder.token.refiner", (2048,))),),
    read=patched(),
    no_place=r"context_embedder|image_embedder|cond_type_embed",
    guidance=IN_TWO_CALLS,
    dialects=(HUNYUAN_VIDEO_NAMES,),
)
