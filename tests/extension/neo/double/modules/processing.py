"""A generation: nothing is painted, but what each pass would have painted with is kept. The order is the program's."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from backend import sampling
from modules import extra_networks, prompt_parser, script_callbacks, scripts, sd_models, shared
from torch import Tensor


@dataclass(frozen=True)
class Pass:
    """One run of the denoiser."""

    name: str
    batch: int
    checkpoint: str
    weights: dict[str, Tensor]  # that were there while it ran
    text: list[list[Any]]  # of each picture the parts of its prompt, as they were encoded
    negative: list[Any]
    # Of each step, side and part: what the weight of a layer was in effect, (pictures, out, in).
    effective: list[dict[tuple[str, int], Tensor]]


_cache: dict[str, list[Any]] = {name: [None, None] for name in ("c", "uc", "hr_c", "hr_uc")}


@dataclass
class StableDiffusionProcessing:
    """A job. What comes from outside is above, what the job makes of it below."""

    prompt: Any = ""
    negative_prompt: Any = ""
    batch_size: int = 1
    n_iter: int = 1
    steps: int = 4
    enable_hr: bool = False
    hr_prompt: Any = ""
    disable_extra_networks: bool = False
    refiner_checkpoint: str = ""
    seed: int = 1
    override_settings: dict[str, Any] = field(default_factory=dict)
    scripts: Any = None

    def __post_init__(self) -> None:
        self.comments: dict[str, int] = {}
        self.extra_generation_params: dict[str, Any] = {}
        self.is_hr_pass = False
        self.iteration = 0
        self.hr_prompts: Any = None
        self.hr_negative_prompts: Any = None
        self.all_hr_prompts: Any = None
        self.all_hr_negative_prompts: Any = None
        self.extra_network_data: Any = None
        self.hr_extra_network_data: Any = None
        self.passes: list[Pass] = []

    @property
    def sd_model(self) -> Any:
        return sd_models.model_data.get_sd_model()

    def comment(self, text: str) -> None:
        """Say something under the picture, once."""
        self.comments[text] = 1

    def setup_prompts(self) -> None:
        """Make one prompt for each picture of the job."""
        count = self.batch_size * self.n_iter

        def all_of(prompt: Any) -> list[str]:
            return list(prompt) if isinstance(prompt, list) else [prompt] * count

        self.all_seeds = [self.seed + index for index in range(count)]
        self.all_prompts, self.all_negative_prompts = all_of(self.prompt), all_of(self.negative_prompt)
        if self.enable_hr:
            self.all_hr_prompts = all_of(self.hr_prompt or self.prompt)
            self.all_hr_negative_prompts = all_of(self.negative_prompt)

    def parse_extra_network_prompts(self) -> None:
        """Take the tags out of this batch's prompts; those of the first count."""
        self.prompts, self.extra_network_data = extra_networks.parse_prompts(self.prompts)
        if self.enable_hr:
            part = slice(self.iteration * self.batch_size, (self.iteration + 1) * self.batch_size)
            self.hr_negative_prompts = self.all_hr_negative_prompts[part]
            self.hr_prompts, self.hr_extra_network_data = extra_networks.parse_prompts(self.all_hr_prompts[part])

    def setup_conds(self) -> None:
        """Encode the prompts of the pass."""
        hires = self.is_hr_pass
        prompts = self.hr_prompts if hires else self.prompts
        negatives = self.hr_negative_prompts if hires else self.negative_prompts
        data = self.hr_extra_network_data if hires else self.extra_network_data
        against = prompt_parser.SdConditioning(negatives, is_negative_prompt=True)
        one, several = prompt_parser.get_learned_conditioning, prompt_parser.get_multicond_learned_conditioning
        names = ("hr_uc", "hr_c") if hires else ("uc", "c")
        self.uc = self.get_conds_with_caching(one, against, self.steps, [_cache[names[0]]], data)
        texts = prompt_parser.SdConditioning(prompts)
        self.c = self.get_conds_with_caching(several, texts, self.steps, [_cache[names[1]]], data)

    def get_conds_with_caching(
        self, function: Any, required_prompts: Any, steps: int, caches: Any, extra_network_data: Any, hires: Any = None
    ) -> Any:
        """Return encoded prompts, those of the last time if prompts, tags and checkpoint are equal."""
        key = (list(required_prompts), steps, dict(extra_network_data), self.sd_model.sd_checkpoint_info.name)
        for cache in caches:
            if cache[0] is not None and cache[0] == key:
                return cache[1]
        caches[0][:] = [key, function(self.sd_model, required_prompts, steps, hires)]
        return caches[0][1]

    def sample(self) -> None:
        """Run the passes of one batch."""
        self._run("first", steps=self.steps // 2 if self.refiner_checkpoint else self.steps)
        if self.refiner_checkpoint:
            self._refine_in_place()
        if self.enable_hr:
            self.is_hr_pass = True
            if not self.disable_extra_networks:
                extra_networks.activate(self, self.hr_extra_network_data)
            model = self.sd_model
            model.forge_objects = model.forge_objects_after_applying_lora.shallow_copy()
            self.setup_conds()
            self._run("hires")
            self.is_hr_pass = False

    def _refine_in_place(self) -> None:
        """Load another checkpoint into the very modules of the denoiser, in the middle of a picture."""
        model = self.sd_model
        model.forge_objects.unet.unpatch_model()
        weights = sd_models.checkpoints[self.refiner_checkpoint].weights
        inner = {name.removeprefix("model."): w for name, w in weights.items() if name.startswith("model.diffusion_")}
        model.forge_objects.unet.model.load_state_dict(inner)
        model.current_lora_hash = str([])
        if not self.disable_extra_networks:
            data = self.extra_network_data
            data["lora"] = [extra_networks.ExtraNetworkParams(list(params.items)) for params in data.pop("lora", [])]
            extra_networks.activate(self, data)
        self._run("refiner", start=self.steps // 2)
        model.current_lora_hash = str([])

    def _run(self, name: str, *, start: int = 0, steps: int | None = None) -> None:
        model = self.sd_model
        unet = model.forge_objects.unet
        with torch.inference_mode():
            unet.partially_load(sd_models.memory.free)
            shown = model.weights()
            parts = [len(parts) for parts in self.c.batch]
            denoiser = SimpleNamespace(step=start, steps=self.steps, total_steps=self.steps)
            pictures = len(parts)
            every = []
            for number in range(start, self.steps if steps is None else steps):
                denoiser.step = number
                x, sigma = torch.zeros(pictures, 4, 8, 8), torch.full((pictures,), float(self.steps - number))
                script_callbacks.cfg_denoiser_callback(SimpleNamespace(x=x, sigma=sigma, denoiser=denoiser))
                cond = sampling.conditions([torch.zeros(pictures, 3, 2)] * min(parts))
                uncond = sampling.conditions([torch.ones(pictures, 3, 2)])
                a_call = sd_models.memory.conditions_a_call
                every.append(sampling.sampling_function(unet, x, sigma, cond, uncond, a_call))
        checkpoint = model.sd_checkpoint_info.name
        self.passes.append(Pass(name, self.iteration, checkpoint, shown, self.c.batch, self.uc, every))


@dataclass
class Processed:
    """What came of a job."""

    p: StableDiffusionProcessing
    extra_generation_params: dict[str, Any]

    @property
    def comments(self) -> list[str]:
        return list(self.p.comments)

    @property
    def passes(self) -> list[Pass]:
        return self.p.passes


def process_images(p: StableDiffusionProcessing) -> Processed:
    """Do a job."""
    p.scripts = scripts.scripts_txt2img if p.scripts is None else p.scripts
    p.scripts.run("before_process", p)
    before = {key: getattr(shared.opts, key) for key in p.override_settings}
    try:
        for key, value in p.override_settings.items():
            setattr(shared.opts, key, value)
        sd_models.forge_model_reload()
        return _process(p)
    finally:
        for key, value in before.items():
            setattr(shared.opts, key, value)


def _process(p: StableDiffusionProcessing) -> Processed:
    p.setup_prompts()
    p.scripts.run("process", p)
    for number in range(p.n_iter):
        p.iteration = number
        model = sd_models.forge_model_reload()
        model.forge_objects = model.forge_objects_original.shallow_copy()
        part = slice(number * p.batch_size, (number + 1) * p.batch_size)
        p.prompts, p.negative_prompts = p.all_prompts[part], p.all_negative_prompts[part]
        p.scripts.run("before_process_batch", p, batch_number=number, prompts=p.prompts)
        p.parse_extra_network_prompts()
        if not p.disable_extra_networks:
            extra_networks.activate(p, p.extra_network_data)
        model.forge_objects = model.forge_objects_after_applying_lora.shallow_copy()
        p.scripts.run("process_batch", p, batch_number=number, prompts=p.prompts)
        p.setup_conds()
        p.sample()
        p.scripts.run("postprocess_batch", p, batch_number=number)
    if not p.disable_extra_networks and p.extra_network_data:
        extra_networks.deactivate(p, p.extra_network_data)
    processed = Processed(p, p.extra_generation_params)
    p.scripts.run("postprocess", p, processed)
    return processed
