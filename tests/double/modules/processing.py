"""A generation: nothing is painted, but what each pass would have painted with is kept.

The order of calls is the program's, for it is what the extension depends on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from modules import extra_networks, scripts, sd_hijack, sd_models, shared
from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """Prompts as the text encoder had them: with its weights and the words that it knew then."""

    prompts: tuple[str, ...]
    words: tuple[str, ...]
    weights: dict[str, Tensor]


@dataclass(frozen=True)
class Pass:
    """One run of the denoiser: "first", "refiner", "hires" or "hires refiner"."""

    name: str
    batch: int
    checkpoint: str
    weights: dict[str, Tensor]
    conditioning: Conditioning


_cache: list[list[Any]] = [[None, None], [None, None]]  # encoded prompts: of the first pass, of the hires pass


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
        self.hr_prompts: Any = None
        self.c: Any = None
        self.hr_c: Any = None
        self.passes: list[Pass] = []

    def comment(self, text: str) -> None:
        """Say something under the picture, once."""
        self.comments[text] = 1

    def setup_prompts(self) -> None:
        """Make one prompt for each picture of the job."""
        count = self.batch_size * self.n_iter

        def all_of(prompt: Any) -> list[str]:
            return prompt if isinstance(prompt, list) else [prompt] * count

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
            self.hr_prompts, self.hr_extra_network_data = extra_networks.parse_prompts(self.all_hr_prompts[part])

    def setup_conds(self) -> None:
        """Encode the prompts; where memory is scarce those of the hires pass too, with its tags."""
        if self.is_hr_pass:  # the refiner asks
            self.hr_c = None
            self.calculate_hr_conds()
            return
        self.c = _encoded(self.prompts, self.extra_network_data, [_cache[0]])
        self.hr_c = None
        if self.enable_hr and self.hr_checkpoint_name is None and shared.sd_model.lowvram:
            extra_networks.activate(self, self.hr_extra_network_data)
            self.calculate_hr_conds()
            extra_networks.activate(self, self.extra_network_data)

    def calculate_hr_conds(self) -> None:
        """Encode the prompts of the hires pass, unless that is done."""
        if self.hr_c is None:
            self.hr_c = _encoded(self.hr_prompts, self.hr_extra_network_data, [_cache[1], _cache[0]])

    def sample(self) -> None:
        """Run the passes of one batch."""
        self._run("first", self.c)
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
        self._run("hires", self.hr_c)
        if self.refiner_checkpoint:
            self._switch_to_refiner("hires refiner")
        self.is_hr_pass = False

    def _switch_to_refiner(self, name: str) -> None:
        with sd_models.SkipWritingToConfig():
            sd_models.reload_model_weights(info=sd_models.checkpoints[str(self.refiner_checkpoint)])
        self.setup_conds()  # nobody calls activate here
        self._run(name, self.hr_c if self.is_hr_pass else self.c)

    def _run(self, name: str, conditioning: Conditioning) -> None:
        if self.fail_in == name:
            raise RuntimeError("the denoiser was asked to fail")
        model = shared.sd_model
        self.passes.append(Pass(name, self.iteration, model.sd_checkpoint_info.name, _now(model), conditioning))


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


def _encoded(prompts: list[str], data: Any, caches: list[list[Any]]) -> Conditioning:
    """Return encoded prompts, those of the last time if prompts, tags and checkpoint are equal."""
    key = (list(prompts), data, shared.sd_model.sd_checkpoint_info)
    for cache in caches:
        if cache[0] is not None and cache[0] == key:
            return cache[1]
    weights = {name: value for name, value in _now(shared.sd_model).items() if not name.startswith("model.")}
    words = sd_hijack.model_hijack.embedding_db.words_in(" ".join(prompts))
    caches[0][:] = [key, Conditioning(tuple(prompts), tuple(words), weights)]
    return caches[0][1]


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


def _process(p: StableDiffusionProcessing) -> Processed:
    p.setup_prompts()
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
