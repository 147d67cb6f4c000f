"""A generation: the order of the program's calls; the pipelines are those of diffusers and really paint."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from torch import Tensor

from modules import extra_networks, script_callbacks, sd_models, shared
from modules.modeldata import model_data
from modules.prompt_parser_diffusers import PromptEmbedder

sides_apart = False
"""Whether the denoiser is called for each side by itself, as the program's guiders do."""


@dataclass
class StableDiffusionProcessing:
    """A job."""

    prompt: Any = ""
    negative_prompt: str = ""
    batch_size: int = 1
    n_iter: int = 1
    steps: int = 3
    seed: int = 1
    enable_hr: bool = False
    hr_second_pass_steps: int = 0  # as many as the first
    refiner_prompt: str = ""
    lora_apply_te: bool | None = None
    disable_extra_networks: bool = False
    changed_by_script: list[str] | None = None

    def __post_init__(self) -> None:
        self.network_data: Any = defaultdict(list)
        self.extra_generation_params: dict[str, Any] = {}
        self.comments: dict[str, int] = {}
        self.is_hr_pass = False
        self.iteration = 0
        self.all_prompts: Any = None

    def comment(self, text: str) -> None:
        """Keep a text that nobody ever shows."""
        self.comments[text] = 1


@dataclass
class Processed:
    """What a job has painted."""

    latents: list[Tensor] = field(default_factory=list)
    weights: list[dict[str, Tensor]] = field(default_factory=list)  # while each pass was painted


def process_images(p: StableDiffusionProcessing) -> Processed:
    """Paint all batches of a job."""
    shared.sd_model  # noqa: B018 - it loads
    script_callbacks.run("before_process", p)
    count = p.batch_size * p.n_iter
    p.all_prompts = list(p.prompt) if isinstance(p.prompt, list) else [p.prompt] * count
    p.all_negative_prompts = [p.negative_prompt] * count
    p.all_seeds = [p.seed + index for index in range(count)]
    found = Processed()
    with torch.no_grad():
        for iteration in range(p.n_iter):
            p.iteration = iteration
            part = slice(p.iteration * p.batch_size, (p.iteration + 1) * p.batch_size)
            p.prompts, p.negative_prompts = p.all_prompts[part], p.all_negative_prompts[part]
            if p.changed_by_script is not None:
                p.prompts = p.changed_by_script
            p.prompts, p.network_data = extra_networks.parse_prompts(p.prompts)
            generator = [torch.Generator().manual_seed(seed) for seed in p.all_seeds[part]]
            _process_diffusers(p, found, generator)
        model_data.sd_model = sd_models.set_diffuser_pipe(model_data.sd_model, StableDiffusionPipeline)
    return found


def _process_diffusers(p: StableDiffusionProcessing, found: Processed, generator: Any) -> None:
    first = model_data.sd_model
    sd_models.apply_balanced_offload(first)
    p.prompts, p.network_data = extra_networks.parse_prompts(p.prompts, p.network_data)
    extra_networks.activate_filtered(p)
    latents = _paint(p, found, p.prompts, generator, {"height": 32, "width": 32})
    if p.enable_hr:
        p.is_hr_pass = True
        model_data.sd_model = sd_models.set_diffuser_pipe(first, StableDiffusionImg2ImgPipeline)
        prompts = p.prompts
        if p.refiner_prompt:
            prompts, p.network_data = extra_networks.parse_prompts([p.refiner_prompt] * len(prompts))
            extra_networks.activate_filtered(p)
        _paint(p, found, prompts, generator, {"image": latents, "strength": 0.9})
        p.is_hr_pass = False
    extra_networks.deactivate(p)
    model_data.sd_model = first


def _paint(p: StableDiffusionProcessing, found: Processed, prompts: list[str], generator: Any, more: Any) -> Tensor:
    pipe = model_data.sd_model
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)  # each pass has a sampler of its own
    steps = (p.is_hr_pass and p.hr_second_pass_steps) or p.steps
    texts: dict[str, Any] = {"prompt": prompts, "negative_prompt": p.negative_prompts}
    if shared.opts.prompt_attention != "fixed":
        embedder = PromptEmbedder(prompts, p.negative_prompts, steps, 1, p)
        embeds, against = embedder("prompt_embeds"), embedder("negative_prompt_embeds")
        texts = {"prompt_embeds": embeds, "negative_prompt_embeds": against}
    if sides_apart:
        latents = _each_side(pipe, embeds, against, steps, generator)
    else:
        latents = pipe(
            **texts,
            num_inference_steps=steps,
            guidance_scale=4.0,
            generator=generator,
            output_type="latent",
            **more,
        ).images
    found.latents.append(latents)
    weights = pipe.unet.state_dict()
    found.weights.append({name: tensor.clone() for name, tensor in weights.items() if not tensor.is_meta})
    return latents


def _each_side(pipe: Any, embeds: Tensor, against: Tensor, steps: int, generator: Any) -> Tensor:
    """Paint with a guider: a call of the denoiser for the prompts, and one for the negative prompts."""
    pipe.guider = object()
    pipe.scheduler.set_timesteps(steps)
    latents = pipe.prepare_latents(len(embeds), 4, 32, 32, embeds.dtype, torch.device("cpu"), generator)
    for time in pipe.scheduler.timesteps:
        scaled = pipe.scheduler.scale_model_input(latents, time)
        with_prompt = pipe.unet(scaled, time, encoder_hidden_states=embeds, return_dict=False)[0]
        without = pipe.unet(scaled, time, encoder_hidden_states=against, return_dict=False)[0]
        latents = pipe.scheduler.step(without + 4.0 * (with_prompt - without), time, latents).prev_sample
    del pipe.guider
    return latents
