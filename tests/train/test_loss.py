"""The loss against the formulas of diffusers' examples in float64, and its gradient against finite differences."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_snr
from torch import nn
from torch.nn import functional

from lora_runtime.errors import TrainingError
from lora_runtime.train.loss import add_noise, loss, schedule_of, snr_weights, target
from lora_runtime.train.randomness import draw

GENERATOR = torch.Generator().manual_seed(0)
LATENTS, NOISE, SAID = (torch.randn(4, 4, 6, 5, generator=GENERATOR).double() for _ in range(3))
STEPS = torch.tensor([0, 137, 500, 999])


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("gamma", [0.0, 5.0])
def test_noise_target_and_loss_are_those_of_the_example_for_ddpm(kind: str, gamma: float) -> None:
    scheduler = DDPMScheduler(prediction_type=kind, beta_schedule="scaled_linear")
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    noisy = scheduler.add_noise(LATENTS, NOISE, STEPS)
    wanted = NOISE if kind == "epsilon" else scheduler.get_velocity(LATENTS, NOISE, STEPS)
    # examples/text_to_image/train_text_to_image_lora.py, from `if args.snr_gamma is None` on
    if gamma == 0:
        expected = functional.mse_loss(SAID, wanted, reduction="mean")
    else:
        snr = compute_snr(scheduler, STEPS)
        weights = torch.stack([snr, gamma * torch.ones_like(STEPS)], dim=1).min(dim=1)[0]
        weights = weights / snr if kind == "epsilon" else weights / (snr + 1)
        each = functional.mse_loss(SAID, wanted, reduction="none").mean(dim=[1, 2, 3]) * weights
        expected = each.mean()

    schedule = schedule_of(scheduler)
    assert schedule.kind == kind
    levels = schedule.levels[STEPS].double()
    assert torch.equal(schedule.times, torch.arange(1000))
    torch.testing.assert_close(add_noise(kind, LATENTS, NOISE, levels), noisy, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(target(kind, LATENTS, NOISE, levels), wanted, rtol=1e-6, atol=1e-6)
    found = loss(SAID, target(kind, LATENTS, NOISE, levels), snr_weights(kind, levels, gamma) / 4)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)


def test_noise_target_and_loss_are_those_of_the_example_for_flow() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    # examples/dreambooth/train_dreambooth_lora_flux.py: sigmas by time step, target = noise - model_input
    sigmas = scheduler.sigmas[STEPS].double().reshape(-1, 1, 1, 1)
    noisy = (1.0 - sigmas) * LATENTS + sigmas * NOISE
    expected = ((SAID - (NOISE - LATENTS)) ** 2).reshape(4, -1).mean(1).mean()

    schedule = schedule_of(scheduler)
    levels = schedule.levels[STEPS].double()
    assert schedule.kind == "flow"
    torch.testing.assert_close(schedule.times[STEPS], scheduler.timesteps[STEPS])
    torch.testing.assert_close(add_noise("flow", LATENTS, NOISE, levels), noisy, rtol=0, atol=1e-12)
    weights = snr_weights("flow", levels, 5.0) / 4
    found = loss(SAID, target("flow", LATENTS, NOISE, levels), weights)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)


def test_steps_of_flow_are_drawn_with_the_density_of_the_example() -> None:
    schedule = schedule_of(FlowMatchEulerDiscreteScheduler())
    theirs = compute_density_for_timestep_sampling(
        "logit_normal", 1000, logit_mean=0.0, logit_std=1.0, generator=torch.Generator().manual_seed(3)
    )
    ours = schedule.draw(1000, torch.Generator().manual_seed(3))
    assert torch.equal(ours, (theirs * 1000).long())


def test_a_scheduler_that_has_painted_is_read_as_it_began() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    before = schedule_of(scheduler)
    scheduler.set_timesteps(4)
    after = schedule_of(scheduler)
    assert torch.equal(before.levels, after.levels)
    assert len(after.levels) == 1000


def test_a_step_without_signal_has_a_finite_weight() -> None:
    levels = torch.tensor([0.0, 0.5])
    # SNR 0 and 1: min(SNR, γ)/SNR is 1 in the limit, min(SNR, γ)/(SNR + 1) is 0 and ½
    assert snr_weights("epsilon", levels, 5.0).tolist() == [1.0, 1.0]
    assert snr_weights("v_prediction", levels, 5.0).tolist() == [0.0, 0.5]


def test_schedulers_of_other_kinds_are_named() -> None:
    assert schedule_of(EulerDiscreteScheduler(prediction_type="v_prediction")).kind == "v_prediction"
    with pytest.raises(TrainingError, match=r"DDPMScheduler \(prediction_type sample\): nothing is known"):
        schedule_of(DDPMScheduler(prediction_type="sample"))


def test_the_gradient_is_that_of_finite_differences() -> None:
    torch.manual_seed(0)
    model = nn.Conv2d(4, 4, 3, padding=1).double()
    levels = torch.tensor([0.2, 0.5, 0.8, 0.99]).double()
    noisy, wanted = add_noise("epsilon", LATENTS, NOISE, levels), target("epsilon", LATENTS, NOISE, levels)
    weights = snr_weights("epsilon", levels, 5.0) / 4

    def value() -> float:
        errors = (model(noisy) - wanted).square().flatten(1).mean(1)
        return float((errors * weights).sum())

    loss(model(noisy), wanted, weights).backward()
    parameter = model.weight
    assert parameter.grad is not None
    for place in ((0, 0, 0, 0), (1, 2, 1, 1), (3, 3, 2, 0)):
        with torch.no_grad():
            ends = []
            for step in (1e-5, -2e-5):
                parameter[place] += step
                ends.append(value())
            parameter[place] += 1e-5
        slope = (ends[0] - ends[1]) / 2e-5
        assert float(parameter.grad[place]) == pytest.approx(slope, rel=1e-4)


def test_what_is_drawn_follows_from_the_seed_and_the_step_alone() -> None:
    schedule = schedule_of(DDPMScheduler())
    one, two, other = (draw((3, 4, 2, 2), schedule, seed=1, step=step) for step in (5, 5, 6))
    assert torch.equal(one.noise, two.noise)
    assert torch.equal(one.steps, two.steps)
    assert not torch.equal(one.noise, other.noise)
    assert not torch.equal(one.noise, one.sampling)
    assert torch.equal(one.rows([2]).noise, one.noise[2:])
    shifted = draw((3, 4, 2, 2), schedule, seed=1, step=5, noise_offset=0.5)
    offset = shifted.noise - one.noise
    # One number for each channel of each row, of deviation ½.
    assert torch.allclose(offset, offset[:, :, :1, :1].expand_as(offset), atol=1e-6)
    assert 0.1 < float(offset[:, :, 0, 0].std()) < 1.0
    assert torch.equal(shifted.steps, one.steps)
