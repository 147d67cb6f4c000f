"""Loads the embedded pipeline and paints with it; diffusers and transformers are imported only when it is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionPipeline
    from PIL import Image

PIPELINE: Path = Path(__file__).parent / "pipeline"
LORAS: Path = Path(__file__).parent / "loras"


def load_pipeline(device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> StableDiffusionPipeline:
    """Return the embedded pipeline, float32 unless told, with its progress bar off; its pictures are 48 × 48."""
    import torch
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    # The files are float16 and are read as float32; the keyword that would say so differs between versions.
    pipe = StableDiffusionPipeline.from_pretrained(PIPELINE, local_files_only=True, low_cpu_mem_usage=False)
    pipe = pipe.to(device) if dtype in (None, torch.float32) else pipe.to(device, dtype)
    pipe.set_progress_bar_config(disable=True)
    return cast("StableDiffusionPipeline", pipe)


def paint(
    pipe: Any,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int],
    steps: int = 20,
    guidance_scale: float = 4.0,
) -> list[Image.Image]:
    """Return a 48 × 48 picture for each prompt, all painted in one batch.

    The noise of each is drawn on the CPU from its own seed, so a seed means the same in any batch and on any device.
    """
    import torch

    return cast(
        "list[Image.Image]",
        pipe(
            list(prompts),
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        ).images,
    )
