"""Trains the embedded pipeline from nothing and writes it to lora_runtime/demo/pipeline/ as a diffusers folder.

    python training/train_pipeline.py --threads 2

The stages: tokenizer, autoencoder, then UNet and text encoder together in three phases (draft, denoiser, polish), then
the autoencoder's decoder once more with its encoder frozen (decoder), assemble. Each leaves its work in training/work/
and is skipped when that is there; `--stage` runs one alone, so that the decoder can be trained beside the denoiser.
Step counts and seeds are fixed: the same machine and thread count give the same weights.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scenes
import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "training" / "work"
PIPELINE = ROOT / "lora_runtime" / "demo" / "pipeline"
STAGES = ("tokenizer", "autoencoder", "draft", "denoiser", "polish", "decoder", "assemble")

PICTURES = 20_000
AUTOENCODER_STEPS = 4_000
DECODER_STEPS = 4_000
AUTOENCODER_BATCH = 8
DENOISER_BATCH = 24
START, END = "<|startoftext|>", "<|endoftext|>"


def write_atomically(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file that a reader never sees half done."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    save_file({name: t.detach().contiguous() for name, t in tensors.items()}, part, metadata)
    part.chmod(0o644)
    part.replace(path)


@dataclass(frozen=True)
class Phase:
    """One part of the denoiser's training; each begins with the mean weights of the one before it."""

    start: str
    steps: int
    plan: int  # the steps over which the learning rate would fall to nothing
    peak: float
    seed: int
    shapes: int  # how often a picture of plain shapes is in the pool


# The shapes are the hardest to tell apart: the last phase shows them more often.
PHASES = {
    "draft": Phase("", 1_500, 5_400, 1.5e-3, 21, 1),
    "denoiser": Phase("draft", 1_600, 1_600, 1.5e-3, 22, 1),
    "polish": Phase("denoiser", 2_400, 2_400, 1.2e-3, 23, 2),
}


class Ema:
    """A running mean of a module's parameters."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.module = module
        self.mean = {name: p.detach().clone() for name, p in module.named_parameters()}
        self.steps = 0

    @torch.no_grad()
    def update(self) -> None:
        # A young mean forgets faster, or it would remember the random start.
        self.steps += 1
        weight = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        parameters = list(self.module.parameters())
        torch._foreach_lerp_(list(self.mean.values()), parameters, weight)


def progress(name: str, steps: int, batch: int) -> Iterator[tuple[int, Callable[[float], None]]]:
    """Yield each step with a function that takes the loss and prints, now and then, how far the run is."""
    start = time.perf_counter()
    mean = 0.0

    def report(loss: float) -> None:
        nonlocal mean
        mean = loss if step == 0 else 0.98 * mean + 0.02 * loss
        if (step + 1) % (100 if steps >= 500 else 20) == 0 or step + 1 == steps:
            rate = (step + 1) / (time.perf_counter() - start)
            left = (steps - step - 1) / rate / 60
            print(
                f"{name} {step + 1}/{steps} loss {mean:.4f} {rate * batch:.0f} samples/s, {left:.1f} min left",
                flush=True,
            )

    for step in range(steps):
        yield step, report


def learning_rate(step: int, steps: int, peak: float, warmup: int = 100) -> float:
    """Return a linear warm-up followed by a cosine that ends at 1 % of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))))


def to_tensor(pictures: np.ndarray) -> Tensor:
    """Return uint8 pictures (n, 48, 48, 3) as float (n, 3, 48, 48), -1 to 1."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().contiguous() / 127.5 - 1


def plain_scenes(seed: int = 1) -> list[scenes.Scene]:
    """Return the scenes of the base training."""
    rng = np.random.default_rng(seed)
    return [scenes.random_scene(rng) for _ in range(PICTURES)]


def mixed_pictures(seed: int = 2) -> np.ndarray:
    """Return pictures for the autoencoder: a third in some style, some with the concept that the base never shows."""
    rng = np.random.default_rng(seed)
    pictures = []
    for _ in range(PICTURES // 2):
        style = str(rng.choice(scenes.STYLES)) if rng.random() < 0.36 else None
        scene = scenes.random_scene(rng, concept=rng.random() < 0.06)
        pictures.append(scenes.render(scene, style, float(rng.uniform(0.4, 1.1))))
    return np.stack(pictures)


def train_tokenizer(folder: Path) -> None:
    """Write a CLIP tokenizer whose merges make one token of every word that the captions use."""
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from tokenizers.trainers import BpeTrainer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    model = Tokenizer(BPE(end_of_word_suffix="</w>"))
    model.pre_tokenizer = WhitespaceSplit()
    trainer = BpeTrainer(vocab_size=4000, min_frequency=1, end_of_word_suffix="</w>", show_progress=False)
    model.train_from_iterator([" ".join(scenes.word_list())], trainer)
    merges = json.loads(model.to_str())["model"]["merges"]
    pairs = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in merges]
    tokens = [*letters, *(c + "</w>" for c in letters), *(a + b for a, b in pairs), START, END]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False) + "\n", encoding="utf-8")
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in pairs)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    config = special | {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True}
    config |= {"add_prefix_space": False, "errors": "replace"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n", encoding="utf-8")


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Return token numbers (n, 77), padded as the pipeline pads a prompt."""
    return tokenizer(captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids


def new_autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 32),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=scenes.SIZE,
        mid_block_add_attention=False,
    )


def new_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=scenes.SIZE // 4,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(48, 64, 96),
        layers_per_block=1,
        norm_num_groups=16,
        attention_head_dim=2,  # in this class it is the number of heads
        cross_attention_dim=64,
    )


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=256,
        projection_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def new_scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,  # else very dark and very light grounds drift to grey
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def picture_loss(out: Tensor, target: Tensor) -> Tensor:
    """Return the L1 distance plus half the L1 distance of the gradients, which keeps edges sharp; (n, 3, h, w) each."""
    error = out - target
    gradient = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    return error.abs().mean() + 0.5 * gradient


def train_autoencoder(pictures: np.ndarray, out: Path, start: Path | None, steps: int) -> None:
    """Train all of the autoencoder, or only its decoder from the weights in `start`."""
    torch.manual_seed(10)
    model = new_autoencoder()
    if start is not None:
        model.load_state_dict(load_file(start))
        model.encoder.requires_grad_(False)
        model.quant_conv.requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-3, betas=(0.9, 0.99), weight_decay=1e-4)
    ema = Ema(model, 0.995)
    data = to_tensor(pictures)
    rng = torch.Generator().manual_seed(11)
    for step, report in progress(out.stem, steps, AUTOENCODER_BATCH):
        optimizer.param_groups[0]["lr"] = learning_rate(step, steps, 2e-3)
        x = data[torch.randint(len(data), (AUTOENCODER_BATCH,), generator=rng)]
        if start is None:
            posterior = model.encode(x).latent_dist
            kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
            loss = picture_loss(model.decode(posterior.sample()).sample, x) + 2e-4 * kl
        else:
            with torch.no_grad():
                z = model.encode(x).latent_dist.mean
                # The denoiser's latents are a little off: teach the decoder to put up with that.
                z = z + 0.06 * z.std() * torch.randn(z.shape, generator=rng)
            loss = picture_loss(model.decode(z).sample, x)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        ema.update()
        report(loss.item())
        if (step + 1) % 1000 == 0 or step + 1 == steps:
            path = out if step + 1 == steps else out.with_suffix(".partial.safetensors")
            write_atomically(ema.mean, path)
    model.load_state_dict(load_file(out))
    with torch.no_grad():
        x = data[:400]
        y = model.decode(model.encode(x).latent_dist.mean).sample.clamp(-1, 1)
        print(f"{out.stem}: {10 * math.log10(4 / (y - x).square().mean().item()):.1f} dB", flush=True)


@torch.no_grad()
def encode_pictures(pictures: np.ndarray, autoencoder: AutoencoderKL) -> Tensor:
    """Return the mean latents (n, 4, 12, 12), not yet scaled."""
    parts = [autoencoder.encode(to_tensor(part)).latent_dist.mean for part in np.array_split(pictures, 100)]
    return torch.cat(parts)


def load_autoencoder(path: Path) -> AutoencoderKL:
    model = new_autoencoder()
    model.load_state_dict(load_file(path))
    return model.eval()


class Denoiser(nn.Module):
    """The UNet and the text encoder, trained together."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.unet = new_unet()
        self.text = new_text_encoder(tokenizer)

    def forward(self, noisy: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        """Return the predicted v (n, 4, 12, 12) for noisy latents, timesteps (n,) and token numbers (n, 77)."""
        return self.unet(noisy, t, self.text(ids).last_hidden_state, return_dict=False)[0]


def v_loss(
    predict: Callable[[Tensor, Tensor, Tensor], Tensor],
    z: Tensor,
    ids: Tensor,
    alphas: Tensor,
    rng: torch.Generator,
    share: slice = slice(None),
) -> Tensor:
    """Return the v-prediction loss of scaled latents z (n, 4, 12, 12) at timesteps spread evenly over the schedule.

    `share` is this worker's part of the batch. All workers draw the noise of the whole batch, so that their number
    changes nothing but the speed.
    """
    n = len(z)
    t = (((torch.arange(n) + torch.rand(n, generator=rng)) / n) * len(alphas)).long().clamp(max=len(alphas) - 1)
    noise = torch.randn(z.shape, generator=rng)
    z, ids, t, noise = z[share], ids[share], t[share], noise[share]
    alpha = alphas[t].view(-1, 1, 1, 1)
    noisy = alpha.sqrt() * z + (1 - alpha).sqrt() * noise
    target = alpha.sqrt() * noise - (1 - alpha).sqrt() * z
    return F.mse_loss(predict(noisy, t, ids), target)


def mean_gradients(parameters: list[nn.Parameter], workers: int) -> None:
    """Give every worker the mean of all workers' gradients."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient) / workers)


def train_denoiser(rank: int, workers: int, latents: Tensor, captions: list[str], pool: Tensor, name: str) -> None:
    """Train UNet and text encoder together for one phase, on scaled latents (n, 4, 12, 12).

    `pool` has the numbers of the pictures to draw from, some of them more than once. Each of the `workers` processes
    takes its share of every batch.
    """
    phase, out = PHASES[name], WORK / f"{name}.safetensors"
    if workers > 1:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", f"file://{WORK / 'meeting'}", rank=rank, world_size=workers)
    tokenizer = CLIPTokenizer.from_pretrained(WORK / "tokenizer")
    ids, empty = tokenize(tokenizer, captions), tokenize(tokenizer, [""])[0]
    torch.manual_seed(20)
    model = Denoiser(tokenizer)
    if phase.start:
        model.load_state_dict(load_file(WORK / f"{phase.start}.safetensors"))
    decay = [p for p in model.parameters() if p.ndim >= 2 and p.shape[0] != len(tokenizer)]
    keep = [p for p in model.parameters() if p.ndim < 2 or p.shape[0] == len(tokenizer)]
    groups = [{"params": decay, "weight_decay": 1e-2}, {"params": keep, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=phase.peak, betas=(0.9, 0.99), foreach=True)
    ema = Ema(model, 0.998)
    alphas = new_scheduler().alphas_cumprod
    rng = torch.Generator().manual_seed(phase.seed)
    for step, report in progress(name, phase.steps, DENOISER_BATCH):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, phase.plan, phase.peak)
        rows = pool[torch.randint(len(pool), (DENOISER_BATCH,), generator=rng)]
        batch_ids = ids[rows]
        batch_ids[torch.rand(DENOISER_BATCH, generator=rng) < 0.1] = empty
        loss = v_loss(model, latents[rows], batch_ids, alphas, rng, slice(rank, None, workers))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if workers > 1:
            mean_gradients(decay + keep, workers)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        ema.update()
        if rank > 0:
            continue
        report(loss.item())
        if (step + 1) % 500 == 0 or step + 1 == phase.steps:
            path = out if step + 1 == phase.steps else out.with_suffix(".partial.safetensors")
            write_atomically(ema.mean, path)
    if workers > 1:
        dist.destroy_process_group()


def start_denoiser(workers: int, name: str) -> None:
    """Train one phase of the denoiser in so many processes; they scale better than threads."""
    drawn = plain_scenes()
    shapes = [i for i, scene in enumerate(drawn) if scene.things[0].kind in scenes.SHAPES]
    pool = torch.tensor([*range(len(drawn)), *shapes * (PHASES[name].shapes - 1)])
    args = (workers, scaled_latents(drawn), [scene.caption for scene in drawn], pool, name)
    (WORK / "meeting").unlink(missing_ok=True)
    if workers == 1:
        train_denoiser(0, *args)
    else:
        torch.multiprocessing.spawn(train_denoiser, args, nprocs=workers)


def newest(stem: str) -> Path | None:
    """Return a stage's result in the work folder, or its last checkpoint, or None."""
    candidates = [WORK / f"{stem}.safetensors", WORK / f"{stem}.partial.safetensors"]
    return next((path for path in candidates if path.exists()), None)


def _half(tensors: Iterable[tuple[str, Tensor]], prefix: str = "") -> dict[str, Tensor]:
    return {prefix + name: t.half() for name, t in tensors}


def assemble(folder: Path) -> None:
    """Write the diffusers folder from the newest work files, then put it in the place of the old one."""
    tokenizer = CLIPTokenizer.from_pretrained(WORK / "tokenizer")
    denoiser = Denoiser(tokenizer)
    weights = newest("polish") or newest("denoiser") or newest("draft")
    assert weights is not None, "train the denoiser first"
    denoiser.load_state_dict(load_file(weights))
    autoencoder = load_autoencoder(newest("decoder") or WORK / "autoencoder.safetensors")
    scale = json.loads((WORK / "latents.json").read_text(encoding="utf-8"))["scaling_factor"]
    autoencoder.register_to_config(scaling_factor=scale)
    pipe = StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=denoiser.text,
        tokenizer=tokenizer,
        unet=denoiser.unet,
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    part = WORK / "pipeline"
    shutil.rmtree(part, ignore_errors=True)
    pipe.save_pretrained(part)
    shutil.rmtree(part / "tokenizer")
    shutil.copytree(WORK / "tokenizer", part / "tokenizer")
    write_atomically(
        _half(denoiser.unet.state_dict().items()), part / "unet/diffusion_pytorch_model.safetensors", FORMAT
    )
    write_atomically(_half(autoencoder.state_dict().items()), part / "vae/diffusion_pytorch_model.safetensors", FORMAT)
    # `text_model.` is how checkpoints spell it: transformers 4 and 5 both read that.
    text = {n.removeprefix("text_model."): t for n, t in denoiser.text.state_dict().items() if "position_ids" not in n}
    write_atomically(_half(text.items(), "text_model."), part / "text_encoder/model.safetensors", FORMAT)
    folder.parent.mkdir(parents=True, exist_ok=True)
    for path in sorted(p for p in part.rglob("*") if p.is_file()):
        target = folder / path.relative_to(part)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    print(f"wrote {folder.relative_to(ROOT)}: {size / 1e6:.2f} MB", flush=True)


FORMAT = {"format": "pt"}


def scaled_latents(drawn: list[scenes.Scene]) -> Tensor:
    """Return the scenes' latents (n, 4, 12, 12) at unit spread, from the work folder if they are there.

    The factor is noted for the pipeline's configuration.
    """
    done = WORK / "latents.safetensors"
    if not done.exists():
        pictures = np.stack([scenes.render(scene) for scene in drawn])
        latents = encode_pictures(pictures, load_autoencoder(WORK / "autoencoder.safetensors"))
        scale = round(1 / latents[:2000].std().item(), 5)
        (WORK / "latents.json").write_text(json.dumps({"scaling_factor": scale}) + "\n", encoding="utf-8")
        write_atomically({"latents": latents * scale}, done)
    return load_file(done)["latents"]


def run_stage(stage: str, threads: int) -> None:
    """Run one stage; it does nothing when its result is there already."""
    done = WORK / (stage if stage == "tokenizer" else f"{stage}.safetensors")
    if stage != "assemble" and done.exists():
        print(f"{stage}: already in {done.relative_to(ROOT)}", flush=True)
    elif stage == "tokenizer":
        train_tokenizer(done)
    elif stage == "autoencoder":
        train_autoencoder(mixed_pictures(), done, None, AUTOENCODER_STEPS)
    elif stage == "decoder":
        train_autoencoder(mixed_pictures(3), done, WORK / "autoencoder.safetensors", DECODER_STEPS)
    elif stage in PHASES:
        start_denoiser(threads, stage)
    else:
        assemble(PIPELINE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--stage", choices=("all", *STAGES), default="all")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    WORK.mkdir(parents=True, exist_ok=True)
    print("All stages take about an hour on one CPU core that is free (see training/README.md).", flush=True)
    for stage in STAGES if args.stage == "all" else (args.stage,):
        began = time.perf_counter()
        run_stage(stage, args.threads)
        print(f"{stage}: {(time.perf_counter() - began) / 60:.1f} min", flush=True)


if __name__ == "__main__":
    main()
