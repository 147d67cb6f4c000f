"""One step of training a LoRA on the embedded pipeline, beside the loop of diffusers' own example with peft.

`train` is a step on a batch of 16 pictures of 48 × 48, rank 8 on the UNet's attention, AdamW: noise, prediction, loss,
gradients, the step. `loop` is what examples/text_to_image/train_text_to_image_lora.py does in a step: it encodes the
pictures and the captions each time. `bare` is the same loop with both at hand, as they are with us from the second
epoch on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.records import Options, Record, record_of
from benchmarks.timing import timed

__all__ = ["training"]

_BATCH, _RANK, _RATE = 16, 8, 1e-4
_TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"]  # as ours


def training(options: Options) -> Iterator[Record]:
    """Yield the seconds of a step."""
    batch = 2 if options.quick else _BATCH
    folder = Path(options.folder) / "train"
    _draw(folder / "1_dot", batch)
    pixels = torch.rand(batch, 3, 48, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    captions = [f"a red circle {number}" for number in range(batch)]
    ways = {
        "ours": _ours(folder, batch),
        "loop": _example(pixels, captions, cached=False),
        "bare": _example(pixels, captions, cached=True),
    }
    for who, timing in timed(ways, options.limits).items():
        yield record_of("train", "-", who, timing)


def _draw(folder: Path, count: int) -> None:
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("RGB", (48, 48), (number * 9, 90, 200)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a red circle {number}", encoding="utf-8")


def _ours(folder: Path, batch: int) -> Callable[[], object]:
    """Return our step: a run without its files."""
    from accelerate import PartialState

    from lora_runtime.demo.scene_pipeline import load_pipeline
    from lora_runtime.train import Config
    from lora_runtime.train.folders import find_pictures
    from lora_runtime.train.run import Run

    told = Config(
        train_data_dir=folder,
        output_dir=folder,
        resolution=(48, 48),
        enable_bucket=False,
        network_dim=_RANK,
        network_alpha=_RANK,
        learning_rate=_RATE,
        lr_scheduler="constant",
        train_batch_size=batch,
        max_train_steps=1_000_000,
    )
    run = Run(load_pipeline(), told, find_pictures(told), PartialState())
    run.begin()
    (batches,) = run.groups_of(0)
    return lambda: run.step(batches, 0)


def _example(pixels: Tensor, captions: list[str], *, cached: bool) -> Callable[[], object]:
    """Return a step as the example takes it."""
    from diffusers import DDPMScheduler
    from peft import LoraConfig

    from lora_runtime.demo.scene_pipeline import load_pipeline

    pipe: Any = load_pipeline()
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.requires_grad_(False)
    config = LoraConfig(r=_RANK, lora_alpha=_RANK, init_lora_weights="gaussian", target_modules=_TARGETS)
    pipe.unet.add_adapter(config)
    trained = [parameter for parameter in pipe.unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=_RATE)
    noise_scheduler = DDPMScheduler.from_config(pipe.scheduler.config)

    def encode() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            latents = pipe.vae.encode(pixels).latent_dist.sample() * pipe.vae.config.scaling_factor
            ids = pipe.tokenizer(
                captions, max_length=77, padding="max_length", truncation=True, return_tensors="pt"
            ).input_ids
            return latents, pipe.text_encoder(ids, return_dict=False)[0]

    kept = encode() if cached else None

    def step() -> float:
        latents, states = kept or encode()
        noise = torch.randn_like(latents)
        times = torch.randint(0, noise_scheduler.config.num_train_timesteps, (len(latents),)).long()
        noisy = noise_scheduler.add_noise(latents, noise, times)
        wanted = noise_scheduler.get_velocity(latents, noise, times)
        said = pipe.unet(noisy, times, states, return_dict=False)[0]
        loss = nn.functional.mse_loss(said.float(), wanted.float(), reduction="mean")
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step
