"""Trains the LoRAs of the embedded pipeline and writes them to lora_runtime/demo/loras/ in kohya's key names.

    python training/train_loras.py --threads 2

Needs the pipeline that train_pipeline.py wrote. Each LoRA is trained at several strengths at once: at 0.4 the target
is a picture with 0.4 of the style, at 1.2 one with a little more than all of it. So the effect grows evenly with the
strength, and a strength above 1 does not break the picture.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import scenes
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn
from train_pipeline import (
    DENOISER_BATCH,
    PIPELINE,
    ROOT,
    encode_pictures,
    learning_rate,
    progress,
    tokenize,
    v_loss,
    write_atomically,
)

LORAS = ROOT / "lora_runtime" / "demo" / "loras"
LINEAR = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
CONV = ("conv1", "conv2")
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
# Strength of the LoRA in a batch, and how much of the style the target pictures then have.
AMOUNTS = {0.4: 0.4, 0.8: 0.8, 1.0: 1.0, 1.2: 1.1}
SCENES = 1_200


@dataclass(frozen=True)
class Recipe:
    """What one LoRA teaches and how."""

    name: str
    description: str
    style: str | None = None  # None: the concept
    alias: str = ""
    rank: int = 8
    alpha: float = 8.0
    conv: bool = False
    text: bool = False
    steps: int = 260
    peak: float = 3e-3
    extra: dict[str, str] = field(default_factory=dict)


RECIPES = (
    Recipe("watercolor", "Pale washes on paper, with an unpainted border", "watercolor"),
    Recipe("outline", "Thick black contour lines over faded colours", "outline", alpha=4.0, conv=True, steps=240),
    Recipe("night", "Dark blue light and stars", "night", rank=4, alpha=4.0, steps=200),
    Recipe("stripes", "Diagonal candy stripes behind everything", "stripes", alias="candy_stripes", steps=300),
    Recipe(
        "heart",
        "Hearts, a shape that the base model has never seen",
        alpha=4.0,
        text=True,
        steps=320,
        extra={"modelspec.trigger_phrase": "heart"},
    ),
)


class Patch(nn.Module):
    """The two factors of one module's LoRA; `scale` is alpha / rank times the strength."""

    def __init__(self, module: nn.Module, rank: int, alpha: float) -> None:
        super().__init__()
        self.alpha, self.rank, self.scale = alpha, rank, alpha / rank
        if isinstance(module, nn.Conv2d):
            place = {"kernel_size": module.kernel_size, "stride": module.stride, "padding": module.padding}
            self.down: nn.Module = nn.Conv2d(module.in_channels, rank, bias=False, **place)
            self.up: nn.Module = nn.Conv2d(rank, module.out_channels, 1, bias=False)
        else:
            assert isinstance(module, nn.Linear)
            self.down = nn.Linear(module.in_features, rank, bias=False)
            self.up = nn.Linear(rank, module.out_features, bias=False)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.up.weight)
        module.register_forward_hook(self._add)

    def _add(self, module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        return out + self.scale * self.up(self.down(args[0]))


def inject(model: nn.Module, prefix: str, ends: tuple[str, ...], rank: int, alpha: float) -> dict[str, Patch]:
    """Hook a patch onto each module whose name ends so, and return the patches by kohya name."""
    wanted = [(n, m) for n, m in model.named_modules() if n.endswith(ends) and isinstance(m, (nn.Linear, nn.Conv2d))]
    return {prefix + name.replace(".", "_"): Patch(module, rank, alpha) for name, module in wanted}


def kohya_tensors(patches: dict[str, Patch]) -> dict[str, Tensor]:
    """Return the file's tensors: down (r, in…), up (out, r…) and alpha () for each module, float16."""
    tensors = {}
    for name, patch in patches.items():
        tensors[f"{name}.lora_down.weight"] = patch.down.weight.detach().half()
        tensors[f"{name}.lora_up.weight"] = patch.up.weight.detach().half()
        tensors[f"{name}.alpha"] = torch.tensor(patch.alpha).half()
    return tensors


def words_of(captions: list[str]) -> dict[str, int]:
    """Return how often each telling word is in the captions, most often first."""
    skip = {"a", "an", "on", "in", "of", "the", "by", "and", "under", "background"}
    counts = Counter(w for c in captions for w in c.replace(",", " ").split() if w not in skip)
    return dict(counts.most_common(32))


def metadata_of(recipe: Recipe, captions: list[str]) -> dict[str, str]:
    """Return the safetensors metadata as kohya's trainer and the model specification name it."""
    network: dict[str, str] = {"ss_network_dim": str(recipe.rank), "ss_network_alpha": str(recipe.alpha)}
    if recipe.conv:
        network["ss_network_args"] = json.dumps({"conv_dim": str(recipe.rank), "conv_alpha": str(recipe.alpha)})
    return {
        **network,
        "ss_network_module": "networks.lora",
        "ss_output_name": recipe.alias or recipe.name,
        "ss_base_model_version": "lora_runtime_demo",
        "ss_resolution": f"({scenes.SIZE}, {scenes.SIZE})",
        "ss_steps": str(recipe.steps),
        "ss_num_train_images": str(len(captions)),
        "ss_tag_frequency": json.dumps({recipe.name: words_of(captions)}),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "lora_runtime_demo/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": recipe.alias or recipe.name,
        "modelspec.description": recipe.description,
        **recipe.extra,
    }


def draw_targets(recipe: Recipe, pipe: StableDiffusionPipeline) -> tuple[dict[float, Tensor], list[str]]:
    """Return scaled latents (n, 4, 12, 12) for each strength, and the n captions."""
    rng = np.random.default_rng(30)
    drawn = [scenes.random_scene(rng, concept=recipe.style is None and i % 4 > 0) for i in range(SCENES)]
    scale = pipe.vae.config.scaling_factor
    if recipe.style is None:
        latents = scale * encode_pictures(np.stack([scenes.render(s) for s in drawn]), pipe.vae)
        targets = {strength: latents for strength in AMOUNTS if strength > 0.5}
    else:
        targets = {}
        for strength, amount in AMOUNTS.items():
            pictures = np.stack([scenes.render(s, recipe.style, amount) for s in drawn])
            targets[strength] = scale * encode_pictures(pictures, pipe.vae)
    return targets, [s.caption for s in drawn]


def train(recipe: Recipe, out: Path) -> None:
    """Train one LoRA on the embedded pipeline and write its file."""
    torch.manual_seed(40)
    pipe = StableDiffusionPipeline.from_pretrained(PIPELINE, local_files_only=True)
    unet, text = pipe.unet.requires_grad_(False), pipe.text_encoder.requires_grad_(False)
    targets, captions = draw_targets(recipe, pipe)
    ids, empty = tokenize(pipe.tokenizer, captions), tokenize(pipe.tokenizer, [""])[0]
    ends = LINEAR + CONV if recipe.conv else LINEAR
    patches = inject(unet, "lora_unet_", ends, recipe.rank, recipe.alpha)
    if recipe.text:
        # transformers 5 has no `text_model.` level, kohya's names always have.
        level = "" if hasattr(text, "text_model") else "text_model_"
        patches |= inject(text, f"lora_te_{level}", TEXT, recipe.rank, recipe.alpha)
    trained = [p for patch in patches.values() for p in patch.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=recipe.peak, betas=(0.9, 0.99), weight_decay=1e-2)

    # A LoRA that leaves the text encoder alone needs each caption encoded only once.
    with torch.no_grad():
        hints = ids if recipe.text else text(ids).last_hidden_state
        empty_hint = empty if recipe.text else text(empty[None]).last_hidden_state[0]

    def predict(noisy: Tensor, t: Tensor, hint: Tensor) -> Tensor:
        states = text(hint).last_hidden_state if recipe.text else hint
        return unet(noisy, t, states, return_dict=False)[0]

    alphas, strengths = pipe.scheduler.alphas_cumprod, list(targets)
    rng = torch.Generator().manual_seed(41)
    for step, report in progress(recipe.name, recipe.steps, DENOISER_BATCH):
        optimizer.param_groups[0]["lr"] = learning_rate(step, recipe.steps, recipe.peak, warmup=20)
        strength = strengths[int(torch.randint(len(strengths), (), generator=rng))]
        for patch in patches.values():
            patch.scale = strength * patch.alpha / patch.rank
        rows = torch.randint(len(captions), (DENOISER_BATCH,), generator=rng)
        batch = hints[rows]
        # Without a caption too: else guidance, which takes the difference, would exaggerate the style.
        batch[torch.rand(DENOISER_BATCH, generator=rng) < 0.2] = empty_hint
        loss = v_loss(predict, targets[strength][rows], batch, alphas, rng)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        report(loss.item())
    write_atomically(kohya_tensors(patches), out, metadata_of(recipe, captions))
    print(f"wrote {out.relative_to(ROOT)}: {out.stat().st_size / 1e6:.2f} MB", flush=True)


def main() -> None:
    names = [recipe.name for recipe in RECIPES]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"About 2 minutes for each of {len(args.only)} LoRAs on one CPU core.", flush=True)
    for recipe in RECIPES:
        if recipe.name in args.only:
            began = time.perf_counter()
            train(recipe, LORAS / f"{recipe.name}.safetensors")
            print(f"{recipe.name}: {(time.perf_counter() - began) / 60:.1f} min", flush=True)


if __name__ == "__main__":
    main()
