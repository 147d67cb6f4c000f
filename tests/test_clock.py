"""Which step a call of the denoiser is in, and what its rows are: asked of real (tiny) pipelines and schedulers."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import tiny
import torch
from torch import Tensor, nn

import lora_runtime
from lora_runtime.clock import Clock
from lora_runtime.pipelines import ModelView, view
from lora_runtime.prompt.strength import Moment
from lora_runtime.stage import Call, Stage

STEPS = 4
# diffusers 0.42 hands tensors to numpy 2 in the way of numpy 1.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def pipe() -> Any:
    made = tiny.pipeline("sd1")
    made.unet = diffusers.UNet2DConditionModel(  # what it computes does not matter here: the smallest that runs
        sample_size=16,
        block_out_channels=(4,),
        layers_per_block=1,
        norm_num_groups=2,
        attention_head_dim=2,
        cross_attention_dim=tiny.WIDTH["sd1"],
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
    ).eval()
    return made


@pytest.fixture(autouse=True)
def _own_scheduler(pipe: Any) -> Iterator[None]:
    """Give each test the pipeline as it is made, and look that its scheduler is given back."""
    before = pipe.scheduler
    yield
    pipe.scheduler = before
    assert "step" not in vars(before)


@contextmanager
def watched(pipe: Any, images: int = 1) -> Iterator[list[Call]]:
    """Record what each call of the denoiser is about."""
    model, stage, calls = view(pipe), Stage(), []
    denoiser = model.components["unet"]
    clock = Clock(model, {"unet": stage}, images)
    clock.start(model)
    recorder = denoiser.register_forward_pre_hook(lambda *_: calls.append(stage.call))
    try:
        yield calls
    finally:
        recorder.remove()
        clock.stop()
    assert not denoiser._forward_pre_hooks
    assert "step" not in vars(pipe.scheduler)


def paint(pipe: Any, prompt: str | list[str] = "a", guidance: float = 2.0, **more: Any) -> Any:
    """Paint a picture of 32 × 32."""
    more = {"num_inference_steps": STEPS, "generator": torch.Generator().manual_seed(0), **more}
    return pipe(prompt, guidance_scale=guidance, height=32, width=32, output_type="latent", **more)


def steps_of(calls: list[Call]) -> list[tuple[int, int]]:
    return [(call.moment.step, call.moment.steps) for call in calls]


# How often the denoiser runs in each step; a second-order sampler's last step has no second run.
ONCE = (1,) * STEPS
TWICE = (*(2,) * (STEPS - 1), 1)
SCHEDULERS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "EulerDiscreteScheduler": (ONCE, {}),
    "EulerAncestralDiscreteScheduler": (ONCE, {}),
    "HeunDiscreteScheduler": (TWICE, {}),
    "KDPM2DiscreteScheduler": (TWICE, {}),
    "KDPM2AncestralDiscreteScheduler": (TWICE, {}),
    "DPMSolverMultistepScheduler": (ONCE, {}),
    "DPMSolverMultistepScheduler sde": (ONCE, {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True}),
    "DPMSolverSinglestepScheduler": (ONCE, {}),
    "DPMSolverSDEScheduler": (TWICE, {}),
    "DDIMScheduler": (ONCE, {}),
    "DDIMScheduler trailing": (ONCE, {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True}),
    "DDPMScheduler": (ONCE, {}),
    "PNDMScheduler": ((1,) * (STEPS + 1), {"skip_prk_steps": True}),  # it does its second step twice
    "LMSDiscreteScheduler": (ONCE, {}),
    "LCMScheduler": (ONCE, {}),
    "TCDScheduler": (ONCE, {}),
    "UniPCMultistepScheduler": (ONCE, {}),
    "DEISMultistepScheduler": (ONCE, {}),
    "SASolverScheduler": (ONCE, {}),
    "EDMEulerScheduler": (ONCE, {}),
}
NEEDS = {"LMSDiscreteScheduler": "scipy", "DPMSolverSDEScheduler": "torchsde"}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_steps_come_in_order_with_the_scheduler_s_noise_levels(pipe: Any, name: str) -> None:
    kind = name.split()[0]
    if kind in NEEDS:
        pytest.importorskip(NEEDS[kind])
    times, options = SCHEDULERS[name]
    scheduler = pipe.scheduler = getattr(diffusers, kind)(**options)
    expected = [(step, len(times)) for step, count in enumerate(times) for _ in range(count)]
    with watched(pipe) as calls:
        for _ in range(2):
            paint(pipe)
            assert steps_of(calls) == expected
            for call in calls:
                index = call.moment.step * scheduler.order
                if hasattr(scheduler, "sigmas"):
                    sigma = float(scheduler.sigmas[index])
                else:  # x = √ᾱ·x₀ + √(1 − ᾱ)·ε
                    alpha = float(scheduler.alphas_cumprod[int(scheduler.timesteps[index])])
                    sigma = math.sqrt((1 - alpha) / alpha) if alpha else math.inf
                assert call.moment.sigma == pytest.approx(sigma, rel=1e-5)
            calls.clear()


FROM_A_PICTURE = ["Euler", "Heun", "KDPM2", "DPMSolverMultistep", "DDIM", "PNDM", "UniPCMultistep", "LCM"]


@pytest.mark.parametrize("name", [n for n in SCHEDULERS if n.split("Discrete")[0].split("Sch")[0] in FROM_A_PICTURE])
@pytest.mark.parametrize("strength", [0.5, 0.75])
def test_a_picture_that_starts_from_another_counts_its_own_steps(pipe: Any, name: str, strength: float) -> None:
    kind = name.split()[0]
    if kind == "PNDMScheduler" and strength == 0.5:
        pytest.skip("it starts at the second of two equal time steps, which cannot be told from the first")
    _, options = SCHEDULERS[name]
    twin = diffusers.StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    twin.set_progress_bar_config(disable=True)
    twin.scheduler = getattr(diffusers, kind)(**options)
    count = int(STEPS * strength) + (kind == "PNDMScheduler")
    with watched(twin) as calls:
        twin(
            "a",
            image=torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)),
            strength=strength,
            num_inference_steps=STEPS,
            guidance_scale=2.0,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
        )
    found = steps_of(calls)
    assert sorted(set(found)) == [(step, count) for step in range(count)]
    assert found == sorted(found)


def test_inpainting_counts_its_own_steps(pipe: Any) -> None:
    twin = diffusers.StableDiffusionInpaintPipeline(**pipe.components, requires_safety_checker=False)
    twin.set_progress_bar_config(disable=True)
    with watched(twin) as calls:
        twin(
            "a",
            image=torch.rand(1, 3, 32, 32),
            mask_image=torch.ones(1, 1, 32, 32),
            height=32,
            width=32,
            strength=0.5,
            num_inference_steps=STEPS,
            output_type="latent",
        )
    assert steps_of(calls) == [(0, 2), (1, 2)]


def test_time_steps_of_one_s_own(pipe: Any) -> None:
    pipe.scheduler = diffusers.DDPMScheduler()
    with watched(pipe) as calls:
        paint(pipe, timesteps=[900, 500, 400])
    assert steps_of(calls) == [(0, 3), (1, 3), (2, 3)]


def test_noise_levels_of_one_s_own(pipe: Any) -> None:
    """Of the Euler sampler's list the last is where the run ends."""
    pipe.scheduler = diffusers.EulerDiscreteScheduler()
    with watched(pipe) as calls:
        paint(pipe, sigmas=[14.0, 3.0, 0.5, 0.0])
    assert [(call.moment.step, call.moment.steps, call.moment.sigma) for call in calls] == [
        (0, 3, 14.0),
        (1, 3, 3.0),
        (2, 3, 0.5),
    ]


def test_a_scheduler_put_in_later_is_followed_and_the_old_one_given_back(pipe: Any) -> None:
    with watched(pipe) as calls:
        paint(pipe)
        old = pipe.scheduler
        pipe.scheduler = diffusers.HeunDiscreteScheduler()
        paint(pipe)
        assert "step" not in vars(old)
    assert [step for step, _ in steps_of(calls)] == [0, 1, 2, 3, 0, 0, 1, 1, 2, 2, 3]


def test_a_run_after_one_that_was_broken_off_starts_anew(pipe: Any) -> None:
    class Enough(Exception):
        pass

    def stop(_: Any, step: int, *__: Any) -> dict[str, Any]:
        if step == 1:
            raise Enough
        return {}

    with watched(pipe) as calls:
        with pytest.raises(Enough):
            paint(pipe, callback_on_step_end=stop)
        assert steps_of(calls) == [(0, 4), (1, 4)]
        calls.clear()
        paint(pipe, num_inference_steps=3)
    assert steps_of(calls) == [(0, 3), (1, 3), (2, 3)]


def test_a_run_that_was_interrupted_skips_the_rest(pipe: Any) -> None:
    def interrupt(pipeline: Any, step: int, *_: Any) -> dict[str, Any]:
        pipeline._interrupt = step == 1
        return {}

    with watched(pipe) as calls:
        paint(pipe, callback_on_step_end=interrupt)
        pipe._interrupt = False
        paint(pipe)
    assert [step for step, _ in steps_of(calls)] == [0, 1, 0, 1, 2, 3]


def test_the_same_time_steps_gone_through_twice_are_two_runs(pipe: Any) -> None:
    pipe.scheduler.set_timesteps(3)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    text = torch.zeros(1, 5, tiny.WIDTH["sd1"])
    with watched(pipe) as calls, torch.no_grad():
        for _ in range(2):
            for time in pipe.scheduler.timesteps:
                noise = pipe.unet(latents, time, encoder_hidden_states=text).sample
                latents = pipe.scheduler.step(noise, time, latents).prev_sample
    assert steps_of(calls) == [(0, 3), (1, 3), (2, 3)] * 2


def test_a_copy_of_the_scheduler_steps_by_itself(pipe: Any) -> None:
    pipe.scheduler = diffusers.EulerDiscreteScheduler()
    with watched(pipe):
        paint(pipe)
        twin = copy.deepcopy(pipe.scheduler)
        twin.set_timesteps(STEPS)
        pipe.scheduler.set_timesteps(STEPS)
        latents = torch.zeros(1, 4, 8, 8)
        twin.step(latents, twin.timesteps[0], latents)
        assert (twin.step_index, pipe.scheduler.step_index) == (1, None)


def twin_of(pipe: Any) -> Any:
    """Return another pipeline of the same components, with a copy of the scheduler."""
    twin = copy.copy(pipe)
    twin.scheduler = copy.deepcopy(pipe.scheduler)
    return twin


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler", "PNDMScheduler"])
@pytest.mark.parametrize("painted", [False, True])
def test_another_pipeline_of_the_same_model_steps_by_its_own_scheduler(pipe: Any, name: str, painted: bool) -> None:
    count, options = SCHEDULERS[name]
    pipe.scheduler = getattr(diffusers, name)(**options)
    pipe.scheduler.set_timesteps(STEPS)
    twin = twin_of(pipe)
    with watched(twin) as calls:
        paint(twin, num_inference_steps=7)
        expected = [call.moment for call in calls]
    with watched(pipe) as calls:
        if painted:
            paint(pipe)
            calls.clear()
        paint(twin, num_inference_steps=7)
        assert steps_of(calls) == [(moment.step, moment.steps) for moment in expected]
        assert [call.moment.sigma for call in calls] == pytest.approx([moment.sigma for moment in expected], rel=1e-2)
        calls.clear()
        paint(pipe)
    assert steps_of(calls) == [(step, len(count)) for step, times in enumerate(count) for _ in range(times)]


@pytest.mark.parametrize("steps", [2, STEPS, 7])
@pytest.mark.parametrize("after", [0, 2])
def test_a_preview_by_another_pipeline_leaves_the_steps_of_the_picture(pipe: Any, steps: int, after: int) -> None:
    pipe.scheduler = diffusers.EulerDiscreteScheduler()
    twin = twin_of(pipe)

    def preview(_: Any, step: int, *__: Any) -> dict[str, Any]:
        if step == after:
            paint(twin, num_inference_steps=steps)
        return {}

    with watched(pipe) as calls:
        paint(pipe, callback_on_step_end=preview)
    whole = [(step, STEPS) for step in range(STEPS)]
    assert steps_of(calls) == [*whole[: after + 1], *((step, steps) for step in range(steps)), *whole[after + 1 :]]


def test_who_calls_after_the_scheduler_has_arrived_is_told_by_the_value_or_not_at_all() -> None:
    """Another pipeline of the same Flux, which divides its time steps by a thousand."""
    scheduler = flow(3)
    with told(own(flux(), scheduler=scheduler)) as (module, seen):
        for steps in (3, 3, 5):
            run(module, scheduler if not seen else flow(steps), lambda _: [{"encoder_hidden_states": PROMPT}])
    told_ = [(call.moment.step, call.moment.steps) if call.is_told else None for call in seen]
    assert told_[:6] == [(0, 3), (1, 3), (2, 3)] * 2
    assert told_[7] is told_[9] is None  # 800 and 400 of 1000 are no time steps of the known scheduler


# ---- rows -----------------------------------------------------------------------------------------------------------


def rows_of(calls: list[Call]) -> list[str]:
    """Return the rows of the calls as text: "n0 p0", "n" the negative side."""
    return [" ".join(f"{row.side[0]}{row.image}" for row in call.rows) for call in calls]


@pytest.mark.parametrize(("prompts", "guidance", "more", "rows"), [
    ("a", 2.0, {}, "n0 p0"),
    ("a", 1.0, {}, "p0"),
    ("a", 2.0, {"num_images_per_prompt": 2}, "n0 n0 p0 p0"),
    ("a", 1.0, {"num_images_per_prompt": 2}, "p0 p0"),
    (["a", "b", "c"], 2.0, {}, "n0 n1 n2 p0 p1 p2"),
    (["a", "b"], 1.0, {}, "p0 p1"),
    (["a", "b"], 2.0, {"num_images_per_prompt": 2}, "n0 n0 n1 n1 p0 p0 p1 p1"),
])  # fmt: skip
def test_rows_are_sides_then_images(pipe: Any, prompts: Any, guidance: float, more: Any, rows: str) -> None:
    with watched(pipe, images=1 if isinstance(prompts, str) else len(prompts)) as calls:
        paint(pipe, prompts, guidance, **more)
    assert rows_of(calls) == [rows] * STEPS


def test_pictures_of_equal_seeds_are_no_copies_of_each_other(pipe: Any) -> None:
    same = [torch.Generator().manual_seed(3) for _ in range(2)]
    with watched(pipe, images=2) as calls:
        paint(pipe, ["a", "b"], generator=same)
    assert rows_of(calls) == ["n0 n1 p0 p1"] * STEPS
    with watched(pipe, images=2) as calls:
        paint(pipe, ["a", "b"], 1.0, generator=same)
    assert rows_of(calls) == ["p0 p1"] * STEPS


def test_perturbed_attention_has_a_third_copy_of_the_prompt_s_side(pipe: Any) -> None:
    parts = {**pipe.components, "unet": copy.deepcopy(pipe.unet)}  # the pipeline changes its attention processors
    twin = diffusers.StableDiffusionPAGPipeline(**parts, requires_safety_checker=False, pag_applied_layers="mid")
    twin.set_progress_bar_config(disable=True)
    with watched(twin, images=2) as calls:
        paint(twin, ["a", "b"], pag_scale=1.0)
    assert rows_of(calls) == ["n0 n1 p0 p1 p0 p1"] * STEPS


def denoiser(title: str, *arguments: str, **config: Any) -> nn.Module:
    """Return a denoiser that does nothing; its class is called as one of diffusers, and its arguments are as there."""
    scope: dict[str, Any] = {}
    exec(f"def forward(self, {', '.join(f'{name}=None' for name in arguments)}, **_): return None", scope)
    made: nn.Module = type(title, (nn.Module,), {"forward": scope["forward"]})()
    made.config = SimpleNamespace(**config)  # type: ignore[assignment]
    return made


PACKED = ("hidden_states", "encoder_hidden_states", "timestep", "img_ids")


def flux() -> nn.Module:
    return denoiser("FluxTransformer2DModel", *PACKED)


def own(module: nn.Module, name: str = "transformer", titles: tuple[str, ...] = (), **attributes: Any) -> ModelView:
    return ModelView({name: module}, "own", "model", ask=attributes.get, titles=titles)


IDS = torch.cartesian_prod(*map(torch.arange, (1, 3, 4)))
LATENTS = torch.randn(1, 12, 4)


@contextmanager
def told(view_: ModelView, images: int = 1) -> Iterator[tuple[nn.Module, list[Call]]]:
    """Record what each call of the only component is about."""
    (name,), stage, calls = view_.components, Stage(), []
    clock = Clock(view_, {name: stage}, images)
    clock.start(view_)
    module = view_.components[name]
    recorder = module.register_forward_pre_hook(lambda *_: calls.append(stage.call))
    yield module, calls
    recorder.remove()
    clock.stop()


PROMPT, NEGATIVE = torch.randn(1, 5, 8), torch.randn(1, 5, 8)


def run(module: nn.Module, scheduler: Any, calls: Callable[[Any], list[dict[str, Any]]]) -> None:
    """Go through a scheduler's steps as pipelines do; `calls` are those of a step."""
    latents = LATENTS
    for time in scheduler.timesteps:
        for call in calls(time):
            module(**{"hidden_states": latents, "img_ids": IDS, "timestep": time.expand(1) / 1000, **call})
        latents = scheduler.step(torch.zeros_like(latents), time, latents).prev_sample


def flow(steps: int = 3) -> Any:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(steps)
    return scheduler


@pytest.mark.parametrize(("texts", "sides"), [
    ((PROMPT,), "p0"),
    ((PROMPT, NEGATIVE), "p0 n0"),
    ((PROMPT, NEGATIVE, PROMPT), "p0 n0 p0"),  # a third call with layers skipped
    ((PROMPT, PROMPT, NEGATIVE), "p0 p0 n0"),
])  # fmt: skip
@pytest.mark.parametrize("copied", [False, True])
def test_guidance_in_calls_of_its_own_is_told_by_what_they_read(
    texts: tuple[Tensor, ...], sides: str, copied: bool
) -> None:
    scheduler = flow()
    with told(own(flux(), scheduler=scheduler)) as (module, seen):
        run(
            module,
            scheduler,
            lambda _: [{"encoder_hidden_states": text.clone() if copied else text} for text in texts],
        )
    assert rows_of(seen) == sides.split() * 3
    assert [call.moment for call in seen] == [
        Moment(step, 3, float(scheduler.sigmas[step])) for step in range(3) for _ in texts
    ]


def test_guidance_in_some_of_the_steps_alone() -> None:
    scheduler = flow(4)
    guided = iter([(PROMPT,), (PROMPT, NEGATIVE), (PROMPT, NEGATIVE), (PROMPT,)])
    with told(own(flux(), scheduler=scheduler)) as (module, seen):
        run(module, scheduler, lambda _: [{"encoder_hidden_states": text} for text in next(guided)])
    assert rows_of(seen) == ["p0", "p0", "n0", "p0", "n0", "p0"]


def test_another_run_has_other_texts() -> None:
    scheduler = flow(2)
    with told(own(flux(), scheduler=scheduler)) as (module, seen):
        for texts in ((PROMPT, NEGATIVE), (NEGATIVE, PROMPT)):
            scheduler.set_timesteps(2)
            run(module, scheduler, lambda _, texts=texts: [{"encoder_hidden_states": text} for text in texts])
    assert rows_of(seen) == ["p0", "n0"] * 4


SD3_CALL = ("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep")


def test_skipped_layers_are_a_call_of_the_prompt_s_side() -> None:
    """The calls of SD3's pipeline with skip_guidance_layers."""
    scheduler, latents = flow(), torch.randn(1, 4, 4, 4)
    sd3 = denoiser("SD3Transformer2DModel", *SD3_CALL, patch_size=2)
    both = torch.cat([NEGATIVE, PROMPT])
    with told(own(sd3, scheduler=scheduler, do_classifier_free_guidance=True)) as (module, seen):
        for time in scheduler.timesteps:
            module(hidden_states=torch.cat([latents] * 2), encoder_hidden_states=both, timestep=time.expand(2))
            module(hidden_states=latents, encoder_hidden_states=PROMPT, timestep=time.expand(1))
            scheduler.step(latents, time, latents)
    assert rows_of(seen) == ["n0 p0", "p0"] * 3


def test_a_call_with_a_part_of_the_text_is_of_that_part_s_rows() -> None:
    """As LTX-2's further calls, and those of attend and excite."""
    sd3, latents = denoiser("SD3Transformer2DModel", *SD3_CALL, patch_size=2), torch.randn(2, 4, 4, 4)
    both = torch.cat([NEGATIVE, NEGATIVE, PROMPT, PROMPT])
    with told(own(sd3, do_classifier_free_guidance=True), images=2) as (module, seen):
        for text in (both, both.chunk(2)[0], both.chunk(2)[1], both[3:]):
            module(hidden_states=latents[:1].expand(len(text), -1, -1, -1), encoder_hidden_states=text)
    assert rows_of(seen) == ["n0 n1 p0 p1", "n0 n1", "p0 p1", "p1"]


@pytest.mark.parametrize(("title", "pipeline", "rows"), [
    ("UNet2DConditionModel", "StableDiffusionPipeline", "n0 p0"),
    ("UNet2DConditionModel", "StableDiffusionInstructPix2PixPipeline", "p0 n0 n0"),
    ("LuminaNextDiT2DModel", "LuminaPipeline", "p0 n0"),
    ("StableCascadeUNet", "StableCascadePriorPipeline", "p0 n0"),
    ("UNet2DConditionModel", "LEditsPPPipelineStableDiffusion", ""),
    ("SomebodysTransformer", "SomebodysPipeline", ""),
])  # fmt: skip
def test_copies_are_in_the_order_of_the_family_and_the_pipeline(title: str, pipeline: str, rows: str) -> None:
    module = denoiser(title, "sample", "timestep", "encoder_hidden_states")
    latents = torch.randn(1, 4, 4, 4).repeat(len(rows.split()) or 2, 1, 1, 1)
    view_ = own(module, titles=(pipeline, "DiffusionPipeline"), do_classifier_free_guidance=True)
    with told(view_) as (module, seen):
        module(latents, 1, torch.randn(len(latents), 5, 8))
    assert rows_of(seen) == [rows]


@pytest.mark.parametrize(("latents", "texts", "images", "rows"), [
    ((0, 0), "ab", 1, "n0 p0"),
    ((0, 1), "ab", 1, "p0 p0"),
    ((0, 0), "aa", 1, "p0 p0"),  # two pictures of equal seeds
    ((0, 0), "ab", 2, "p0 p1"),
    ((0, 1, 0, 1), "abcd", 2, "n0 n1 p0 p1"),
    ((0, 0, 0, 0), "aabb", 2, ""),  # copies, or four pictures of equal seeds
])  # fmt: skip
def test_where_no_pipeline_says_whether_it_is_guided_the_call_may(
    latents: tuple[int, ...], texts: str, images: int, rows: str
) -> None:
    seeds = [torch.full((4, 4, 4), float(seed)) for seed in latents]
    words = [torch.full((5, 8), float(ord(text))) for text in texts]
    module = denoiser("UNet2DConditionModel", "sample", "timestep", "encoder_hidden_states")
    with told(own(module), images) as (module, seen):
        module(torch.stack(seeds), 1, torch.stack(words))
    assert rows_of(seen) == [rows]


def test_a_guider_calls_for_each_side_alone() -> None:
    """As modular pipelines do."""
    module = denoiser("UNet2DConditionModel", "sample", "timestep", "encoder_hidden_states")
    with told(own(module, guider=object())) as (module, seen):
        for text in (PROMPT, NEGATIVE, PROMPT):
            module(torch.zeros(1, 4, 4, 4), 1, text)
    assert rows_of(seen) == ["p0", "n0", "p0"]


def test_a_list_of_texts_tells_its_copies() -> None:
    """Z-Image's: the prompt's side first; not guided in some steps."""
    module = denoiser("ZImageTransformer2DModel", "x", "t", "cap_feats")
    one, two, none = (torch.randn(32, 8) for _ in range(3))
    pictures = [torch.zeros(4, 1, 6, 8)] * 4
    with told(own(module, do_classifier_free_guidance=True), images=2) as (module, seen):
        module(pictures, 1, [one, two, none, none.clone()])
        module(pictures[:2], 1, [one, two])
    assert rows_of(seen) == ["p0 p1 n0 n1", "p0 p1"]
    with told(own(module), images=2) as (module, seen):
        module(pictures, 1, [one, one, two, two])
    assert rows_of(seen) == ["p0 p0 p1 p1"]


@pytest.mark.parametrize("title", ["UNet2DConditionModel", "ZImageTransformer2DModel"])
@pytest.mark.parametrize("says", [{"do_classifier_free_guidance": True}, {"_guidance_scale": 7.5}])
@pytest.mark.parametrize(("images", "batch"), [
    (2, 2),  # both sides of one of the prompts
    (2, 6),  # those of three
    (3, 3),  # a side in a call of its own
    (1, 1),
])  # fmt: skip
def test_guided_calls_with_other_rows_than_both_sides_of_the_images_are_not_told(
    title: str, says: dict[str, Any], images: int, batch: int
) -> None:
    if title == "UNet2DConditionModel":
        module = denoiser(title, "sample", "timestep", "encoder_hidden_states")
        given: tuple[Any, ...] = torch.zeros(batch, 4, 4, 4), 1, torch.randn(batch, 5, 8)
    else:
        module = denoiser(title, "x", "t", "cap_feats")
        given = [torch.zeros(4, 1, 6, 8)] * batch, 1, [torch.randn(32, 8) for _ in range(batch)]
    with told(own(module, **says), images) as (module, seen):
        module(*given)
    assert rows_of(seen) == [""]


def test_a_scale_that_is_an_input_of_the_model_is_no_guidance() -> None:
    """Sana Sprint's: one side, in one call."""
    module = denoiser("SanaTransformer2DModel", *SD3_CALL, patch_size=1)
    view_ = own(module, titles=("SanaSprintPipeline", "DiffusionPipeline"), _guidance_scale=4.5)
    with told(view_, images=2) as (module, seen):
        module(torch.randn(2, 4, 4, 4), torch.randn(2, 5, 8), timestep=torch.ones(2))
    assert rows_of(seen) == ["p0 p1"]


# ---- schedulers that are not stepped themselves, or not in order -----------------------------------------------------


def test_a_fraction_that_is_the_last_time_step_too_is_the_first(pipe: Any) -> None:
    """As PRX divides the time by a thousand: the first of 1000, 500.5 and 1 is 1.0."""
    with told(own(flux(), scheduler=(scheduler := flow()))) as (module, seen):
        for _ in range(2):
            scheduler.set_timesteps(3)
            run(module, scheduler, lambda time: [{"encoder_hidden_states": PROMPT, "timestep": time.view(1) / 1000}])
    assert float(scheduler.timesteps[-1]) == 1.0
    assert steps_of(seen) == [(step, 3) for step in range(3)] * 2


def test_where_a_scheduler_arrives_is_no_step() -> None:
    """Wuerstchen's has one time more than there are calls."""
    scheduler = diffusers.DDPMWuerstchenScheduler()
    scheduler.set_timesteps(3)
    with told(own(flux(), scheduler=scheduler)) as (module, seen):
        for time in scheduler.timesteps[:-1]:
            module(hidden_states=LATENTS, img_ids=IDS, timestep=time.expand(1), encoder_hidden_states=PROMPT)
    assert steps_of(seen) == [(0, 3), (1, 3), (2, 3)]


@pytest.mark.parametrize("given", ["view", "value"])
def test_a_pipeline_that_steps_copies_of_its_scheduler(given: str) -> None:
    """As SkyReels does, a copy for each frame."""
    scheduler = diffusers.UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction")
    scheduler.set_timesteps(4)
    twin = copy.deepcopy(scheduler)
    twin.set_timesteps(4)
    latents = torch.zeros(1, 4, 2, 4, 4)
    wan = denoiser("WanTransformer3DModel", "hidden_states", "timestep", "encoder_hidden_states", patch_size=(1, 2, 2))
    with told(own(wan, scheduler=scheduler)) as (module, seen):
        for time in (
            scheduler.timesteps if given == "view" else [time[None].repeat(1, 2) for time in scheduler.timesteps]
        ):
            for text in (PROMPT, NEGATIVE):
                module(latents, time, text)
            twin.step(latents, time.flatten()[0], latents)
    assert steps_of(seen) == [(step, 4) for step in range(4) for _ in range(2)]
    assert rows_of(seen) == ["p0", "n0"] * 4


@pytest.mark.parametrize("kind", [diffusers.DDIMScheduler, diffusers.EulerDiscreteScheduler])
def test_a_pipeline_that_steps_several_times_a_step_and_puts_its_scheduler_back(kind: Any) -> None:
    """As the panorama's does for each of its views."""
    scheduler = kind()
    scheduler.set_timesteps(3)
    module = denoiser("UNet2DConditionModel", "sample", "timestep", "encoder_hidden_states")
    latents, states = torch.zeros(2, 4, 4, 4), [copy.deepcopy(vars(scheduler))] * 3
    with told(own(module, scheduler=scheduler, do_classifier_free_guidance=True)) as (module, seen):
        for time in scheduler.timesteps:
            for number, state in enumerate(states):
                vars(scheduler).update(state)
                module(scheduler.scale_model_input(latents, time), time, torch.zeros(2, 5, 8))
                scheduler.step(latents, time, latents)
                states[number] = copy.deepcopy(vars(scheduler))
    assert steps_of(seen) == [(step, 3) for step in range(3) for _ in states]
    assert set(rows_of(seen)) == {"n0 p0"}


def test_a_prior_follows_its_own_scheduler() -> None:
    prior, decoder = diffusers.DDPMWuerstchenScheduler(), diffusers.DDPMWuerstchenScheduler()
    prior.set_timesteps(num_inference_steps=3)
    decoder.set_timesteps(num_inference_steps=2)
    parts = {
        name: denoiser("StableCascadeUNet", "sample", "timestep_ratio", "clip_text_pooled")
        for name in ("prior_prior", "decoder")
    }
    attributes = {"prior_scheduler": prior, "scheduler": decoder, "do_classifier_free_guidance": False}
    model = ModelView(parts, "own", "pipeline", ask=attributes.get)
    stages = {name: Stage() for name in parts}
    clock, seen = Clock(model, stages), []
    clock.start(model)
    for name, scheduler in (("prior_prior", prior), ("decoder", decoder)):
        for time in scheduler.timesteps[:-1]:
            parts[name](sample=torch.zeros(1, 4, 4, 4), timestep_ratio=time.expand(1).to(torch.bfloat16))
            seen.append((name, stages[name].call.moment.step))
    clock.stop()
    assert seen == [("prior_prior", 0), ("prior_prior", 1), ("prior_prior", 2), ("decoder", 0), ("decoder", 1)]


class _Unread(torch.utils._python_dispatch.TorchDispatchMode):
    """Forbids to read a tensor's values, which waits for the device."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert "_local_scalar_dense" not in str(function), "a value was read"
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "kind", ["DDIMScheduler", "EulerDiscreteScheduler", "UniPCMultistepScheduler", "PNDMScheduler"]
)
def test_no_value_is_read_from_the_device_within_a_run(kind: str) -> None:
    scheduler = getattr(diffusers, kind)()
    scheduler.set_timesteps(4)
    module = denoiser("UNet2DConditionModel", "sample", "timestep", "encoder_hidden_states")
    latents, text = torch.zeros(2, 4, 4, 4), torch.zeros(2, 5, 8)
    with told(own(module, scheduler=scheduler, do_classifier_free_guidance=True)) as (module, seen):
        for time in scheduler.timesteps:
            latents_in = scheduler.scale_model_input(latents, time)
            with _Unread() if seen else nullcontext():
                module(latents_in, time, text)
            scheduler.step(latents, time, latents)
    assert [step for step, _ in steps_of(seen)] == list(range(len(scheduler.timesteps)))


def test_flux_reads_the_places_of_its_tokens_once_a_run() -> None:
    scheduler = flow(4)
    with told(own(flux(), scheduler=scheduler)) as (module, seen):
        for time in scheduler.timesteps:
            scaled = time.expand(1) / 1000
            with _Unread() if len(seen) > 2 else nullcontext():  # the first step tells whether the scheduler counts
                for text in (PROMPT, NEGATIVE):
                    module(LATENTS, text, scaled, IDS)
            scheduler.step(LATENTS, time, LATENTS)
    assert steps_of(seen) == [(step, 4) for step in range(4) for _ in range(2)]


def test_what_is_no_call_with_latents_has_no_rows_and_no_place() -> None:
    class Other:
        timesteps = None

    with told(own(flux(), scheduler=Other())) as (module, seen):
        module(torch.zeros(3))
        module("no tensor")
    assert [(call.rows, call.grid, call.moment) for call in seen] == [((), None, Moment(0, 1))] * 2


# ---- by tags --------------------------------------------------------------------------------------------------------


def test_a_loop_of_one_s_own_says_the_step(tmp_path: Path) -> None:
    tiny.write_kohya_lora(tmp_path / "ink.safetensors", unet := tiny.unet(), components=("unet",), std=0.5)
    latents, text = torch.randn(1, 4, 8, 8), torch.zeros(1, 5, tiny.WIDTH["sd1"])

    def noise() -> Tensor:
        with torch.no_grad():
            return unet(latents, 500, encoder_hidden_states=text).sample

    expected = []
    for strength in (0.0, 0.5, 1.0):
        with lora_runtime.apply(unet, f"<lora:ink:{strength}>", loras=tmp_path):
            expected.append(noise())
    with lora_runtime.apply(unet, "<lora:ink:0@0,1@1>", loras=tmp_path) as applied:
        for step, wanted in enumerate(expected):
            applied.at(step, 3)
            torch.testing.assert_close(noise(), wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(noise(), expected[0])


def test_saying_the_step_where_nothing_varies_does_nothing(tmp_path: Path) -> None:
    tiny.write_kohya_lora(tmp_path / "ink.safetensors", unet := tiny.unet(), components=("unet",))
    with lora_runtime.apply(unet, "<lora:ink>", loras=tmp_path) as applied:
        applied.at(1, 3)
