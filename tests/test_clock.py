"""Which step a call of the denoiser is in, and what its rows are: asked of real (tiny) pipelines and schedulers."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
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


class Sees(nn.Module):
    """A denoiser of one's own."""

    def forward(self, hidden_states: Tensor, timestep: Any = None, **_: Any) -> Tensor:
        return hidden_states


def own(scheduler: Any, guided: bool | None = None) -> ModelView:
    return ModelView({"transformer": Sees()}, "own", "model", scheduler=lambda: scheduler, guided=lambda: guided)


@pytest.mark.parametrize(("guided", "sides"), [(True, "p0 n0"), (None, "p0 n0"), (False, "p0 p0")])
def test_guidance_in_two_calls_has_the_prompt_s_side_first(guided: bool | None, sides: str) -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(3)
    model, stage = own(scheduler, guided), Stage()
    clock, seen = Clock(model, {"transformer": stage}), []
    denoiser, latents = model.components["transformer"], torch.randn(1, 6, 4)
    for time in scheduler.timesteps:
        for _ in range(2):
            noise = denoiser(hidden_states=latents, timestep=time)
            seen.append(stage.call)
        latents = scheduler.step(noise, time, latents).prev_sample
    clock.stop()
    assert rows_of(seen) == sides.split() * 3
    assert [call.moment for call in seen] == [
        Moment(step, 3, float(scheduler.sigmas[step])) for step in range(3) for _ in range(2)
    ]


@pytest.mark.parametrize(("call", "grid", "frames", "text"), [
    (lambda m: m(torch.zeros(1, 4, 6, 8)), (6, 8), 1, 0),
    (lambda m: m(torch.zeros(1, 4, 5, 6, 8)), (6, 8), 5, 0),
    (lambda m: m(torch.zeros(1, 12, 64)), None, 1, 0),
    (lambda m: m([torch.zeros(4, 1, 6, 8)]), (6, 8), 1, 0),
    (
        lambda m: m(
            hidden_states=torch.zeros(1, 12, 64), img_ids=torch.cartesian_prod(*map(torch.arange, (1, 3, 4))),
            txt_ids=torch.zeros(7, 3)
        ),
        (3, 4), 1, 7,
    ),
    (lambda m: m(hidden_states=torch.zeros(1, 24, 64), img_shapes=[[(2, 3, 4)]]), (3, 4), 2, 0),
    (lambda m: m(hidden_states=torch.zeros(1, 24, 64), img_shapes=[(2, 3, 4)]), (3, 4), 2, 0),
])  # fmt: skip
def test_the_grid_of_the_latents_is_read_from_the_call(
    call: Callable[[nn.Module], object], grid: tuple[int, int] | None, frames: int, text: int
) -> None:
    model, stage = own(None), Stage()
    clock = Clock(model, {"transformer": stage})
    call(model.components["transformer"])
    clock.stop()
    assert (stage.call.grid, stage.call.frames, stage.call.text) == (grid, frames, text)
    assert stage.call.moment == Moment(0, 1)


def test_what_is_no_call_with_latents_is_left_alone() -> None:
    class Other:
        timesteps = None

    model, stage = own(Other()), Stage()
    clock, before = Clock(model, {"transformer": stage}), stage.call
    model.components["transformer"](torch.zeros(3))
    model.components["transformer"]("no tensor")
    clock.stop()
    assert stage.call is before


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
