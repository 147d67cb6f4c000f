"""A generation: nothing is painted, but what each pass would have painted with is kept.

The order of calls is the program's, for it is what the extension depends on.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from modules import extra_networks, prompt_parser, script_callbacks, scripts, sd_hijack, sd_models, shared
from modules.prompt_parser import Conditioning, MulticondLearnedConditioning
from torch import Tensor


@dataclass(frozen=True)
class Pass:
    """One run of the denoiser: "first", "refiner", "hires" or "hires refiner"."""

    name: str
    batch: int
    checkpoint: str
    weights: dict[str, Tensor]
    conditioning: MulticondLearnedConditioning
    negative: list[Conditioning]
    # Of each call of the denoiser and each of its rows: what a layer's weight is in effect, (out, in).
    effective: list[list[Tensor]]


_cache: dict[str, list[Any]] = {name: [None, None] for name in ("c", "uc", "hr_c", "hr_uc")}  # encoded prompts


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
    hr_negative_prompt: Any = ""
    hr_checkpoint_name: str | None = None
    refiner_checkpoint: str | None = None
    disable_extra_networks: bool = False
    override_settings: dict[str, Any] = field(default_factory=dict)
    scripts: Any = None
    fail_in: str = ""  # a pass that raises
    seed: int = 1
    order: int = 1  # calls of the denoiser in a step, but the last

    def __post_init__(self) -> None:
        self.comments: dict[str, int] = {}
        self.extra_generation_params: dict[str, Any] = {}
        self.all_prompts: Any = None
        self.all_negative_prompts: Any = None
        self.all_hr_prompts: Any = None
        self.all_hr_negative_prompts: Any = None
        self.extra_network_data: Any = None
        self.hr_extra_network_data: Any = None
        self.is_hr_pass = False
        self.iteration = 0
        self.prompts: Any = None
        self.negative_prompts: Any = None
        self.hr_prompts: Any = None
        self.hr_negative_prompts: Any = None
        self.c: Any = None
        self.uc: Any = None
        self.hr_c: Any = None
        self.hr_uc: Any = None
        self.passes: list[Pass] = []

    def comment(self, text: str) -> None:
        """Say something under the picture, once."""
        self.comments[text] = 1

    def setup_prompts(self) -> None:
        """Make one prompt for each picture of the job."""
        count = self.batch_size * self.n_iter

        def all_of(prompt: Any) -> list[str]:
            return prompt if isinstance(prompt, list) else [prompt] * count

        self.all_seeds = [self.seed + index for index in range(count)]
        self.all_prompts = all_of(self.prompt)
        self.all_negative_prompts = all_of(self.negative_prompt)
        if self.enable_hr:
            self.all_hr_prompts = all_of(self.hr_prompt or self.prompt)
            self.all_hr_negative_prompts = all_of(self.hr_negative_prompt or self.negative_prompt)

    def parse_extra_network_prompts(self) -> None:
        """Take the tags out of this batch's prompts."""
        self.prompts, self.extra_network_data = extra_networks.parse_prompts(self.prompts)
        if self.enable_hr:
            part = slice(self.iteration * self.batch_size, (self.iteration + 1) * self.batch_size)
            self.hr_negative_prompts = self.all_hr_negative_prompts[part]
            self.hr_prompts, self.hr_extra_network_data = extra_networks.parse_prompts(self.all_hr_prompts[part])

    def setup_conds(self) -> None:
        """Encode the prompts; where memory is scarce those of the hires pass too, with its tags."""
        if self.is_hr_pass:  # the refiner asks
            self.hr_c = None
            self.calculate_hr_conds()
            return
        self.uc, self.c = self._encode(self.prompts, self.negative_prompts, self.extra_network_data, "uc", "c")
        self.hr_c = None
        if self.enable_hr and self.hr_checkpoint_name is None and shared.sd_model.lowvram:
            extra_networks.activate(self, self.hr_extra_network_data)
            self.calculate_hr_conds()
            extra_networks.activate(self, self.extra_network_data)

    def calculate_hr_conds(self) -> None:
        """Encode the prompts of the hires pass, unless that is done."""
        if self.hr_c is None:
            data = self.hr_extra_network_data
            self.hr_uc, self.hr_c = self._encode(self.hr_prompts, self.hr_negative_prompts, data, "hr_uc", "hr_c")

    def _encode(self, prompts: list[str], negatives: list[str], data: Any, uc: str, c: str) -> tuple[Any, Any]:
        texts = prompt_parser.SdConditioning(prompts)
        against = prompt_parser.SdConditioning(negatives, is_negative_prompt=True)
        one, several = prompt_parser.get_learned_conditioning, prompt_parser.get_multicond_learned_conditioning
        return (
            self.get_conds_with_caching(one, against, self.steps, [_cache[uc], _cache["uc"]], data),
            self.get_conds_with_caching(several, texts, self.steps, [_cache[c], _cache["c"]], data),
        )

    def get_conds_with_caching(
        self, function: Any, required_prompts: Any, steps: int, caches: Any, extra_network_data: Any, hires: Any = None
    ) -> Any:
        """Return encoded prompts, those of the last time if prompts, tags and checkpoint are equal."""
        key = (list(required_prompts), steps, extra_network_data, shared.sd_model.sd_checkpoint_info)
        for cache in caches:
            if cache[0] is not None and cache[0] == key:
                return cache[1]
        caches[0][:] = [key, function(shared.sd_model, required_prompts, steps, hires, False)]
        return caches[0][1]

    def sample(self) -> None:
        """Run the passes of one batch."""
        self._run("first")
        if self.refiner_checkpoint:
            self._switch_to_refiner("refiner")
        if not self.enable_hr:
            return
        with sd_models.SkipWritingToConfig():
            name = self.hr_checkpoint_name
            sd_models.reload_model_weights(info=sd_models.checkpoints[name] if name else None)
        self.is_hr_pass = True
        if not self.disable_extra_networks:
            extra_networks.activate(self, self.hr_extra_network_data)
        self.calculate_hr_conds()
        if self.scripts is not None:
            self.scripts.run("before_hr", self)
        self._run("hires")
        if self.refiner_checkpoint:
            self._switch_to_refiner("hires refiner")
        self.is_hr_pass = False

    def _switch_to_refiner(self, name: str) -> None:
        with sd_models.SkipWritingToConfig():
            sd_models.reload_model_weights(info=sd_models.checkpoints[str(self.refiner_checkpoint)])
        self.setup_conds()  # nobody calls activate here
        self._run(name)

    def _run(self, name: str) -> None:
        if self.fail_in == name:
            raise RuntimeError("the denoiser was asked to fail")
        model = shared.sd_model
        c, uc = (self.hr_c, self.hr_uc) if self.is_hr_pass else (self.c, self.uc)
        effective = _denoised(model, c, self.steps, self.order)
        checkpoint = model.sd_checkpoint_info.name
        self.passes.append(Pass(name, self.iteration, checkpoint, _now(model), c, uc, effective))


@functools.cache
def _multiplies(dtype: torch.dtype) -> bool:
    """Return whether this torch multiplies such matrices: 2.1 no halves on a CPU, on which nobody paints with them."""
    try:
        torch.zeros(1, 1, 1, dtype=dtype) @ torch.zeros(1, 1, 1, dtype=dtype)
    except RuntimeError:
        return False
    return True


def _denoised(model: Any, conditioning: Any, steps: int, order: int) -> list[list[Tensor]]:
    """Call the denoiser as a sampler does; return what a layer's weight was in effect for each row of each call."""
    unet = model.model.diffusion_model
    layer = next((module for name, module in unet.named_modules() if name.endswith("attn1.to_q")), None)
    if layer is None or not _multiplies(layer.weight.dtype):
        return []
    parts = [len(parts) for parts in conditioning.batch]
    rows = sum(parts) + len(parts)
    sampler = SimpleNamespace(sampler_extra_args={"cond": conditioning})
    denoiser = SimpleNamespace(step=0, steps=steps, total_steps=steps * order, sampler=sampler)
    every = []
    # A linear layer gives back its weight where it is given the identity.
    unet.forward = lambda x, *_: layer(torch.eye(layer.in_features, dtype=layer.weight.dtype).expand(len(x), -1, -1)).mT
    for number in range(steps * order - (order - 1)):
        denoiser.step = number
        sigma = torch.full((rows,), float(steps * order - number))
        params = SimpleNamespace(x=torch.zeros(rows, 4, 8, 8), sigma=sigma, denoiser=denoiser)
        script_callbacks.cfg_denoiser_callback(params)
        size = rows if shared.opts.batch_cond_uncond else len(parts)
        every.append([row for some in params.x.split(size) for row in unet(some)])
    del unet.forward
    return every


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


def _now(model: Any) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in sd_hijack.weights_of(model).items()}


def process_images(p: StableDiffusionProcessing) -> Processed:
    """Do a job; the user's checkpoint is loaded first, or the one that the job names."""
    p.scripts = scripts.scripts_txt2img if p.scripts is None else p.scripts
    p.scripts.run("before_process", p)
    before = {key: getattr(shared.opts, key) for key in p.override_settings}
    try:
        for key, value in p.override_settings.items():
            setattr(shared.opts, key, value)
        sd_models.reload_model_weights()
        return _process(p)
    finally:
        for key, value in before.items():
            setattr(shared.opts, key, value)


_COMMENT = re.compile(r"#[^\n]*(?:\n|$)")


def _take_comments_out(p: StableDiffusionProcessing) -> None:
    """Leave out what stands behind a "#", to the end of its line, unless the options say otherwise."""
    if shared.opts.enable_prompt_comments:
        for texts in (p.all_prompts, p.all_negative_prompts, p.all_hr_prompts, p.all_hr_negative_prompts):
            if texts:
                texts[:] = [_COMMENT.sub("\n", text) for text in texts]


def _process(p: StableDiffusionProcessing) -> Processed:
    p.setup_prompts()
    _take_comments_out(p)
    p.scripts.run("process", p)
    for number in range(p.n_iter):
        p.iteration = number
        sd_models.reload_model_weights()
        part = slice(number * p.batch_size, (number + 1) * p.batch_size)
        p.prompts = p.all_prompts[part]
        p.negative_prompts = p.all_negative_prompts[part]
        p.scripts.run("before_process_batch", p, batch_number=number, prompts=p.prompts)
        p.parse_extra_network_prompts()
        if not p.disable_extra_networks:
            extra_networks.activate(p, p.extra_network_data)
        p.scripts.run("process_batch", p, batch_number=number, prompts=p.prompts)
        p.setup_conds()
        p.sample()
        p.scripts.run("postprocess_batch", p, batch_number=number)
    if not p.disable_extra_networks and p.extra_network_data:
        extra_networks.deactivate(p, p.extra_network_data)
    processed = Processed(p, p.extra_generation_params)
    p.scripts.run("postprocess", p, processed)
    return processed
