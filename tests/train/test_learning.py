"""The optimiser's step: rates, warm-up, the cut of gradients and the running mean, against their formulas."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from train.runs import config

from lora_runtime.train.learning import Learner

CPU = torch.device("cpu")
SGD = {"optimizer_type": "SGD", "learning_rate": 0.5, "lr_scheduler": "constant"}


def one(value: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor([value, 0.0]))


def descend(learner: Learner, parameter: nn.Parameter, gradient: tuple[float, float]) -> None:
    learner.backward((parameter * torch.tensor(gradient)).sum())
    learner.step(1)


def test_each_part_has_its_rate_which_warms_up(tmp_path: Path) -> None:
    told = config(tmp_path, **{**SGD, "lr_scheduler": "constant_with_warmup", "lr_warmup_steps": 4, "max_grad_norm": 0})
    first, second = one(1.0), one(1.0)
    learner = Learner([({"a": first}, 0.5), ({"b": second}, 0.25)], told, 8, CPU)
    assert learner.rates == [0.0, 0.0]
    for step in range(1, 6):
        learner.backward(first.sum() + second.sum())
        learner.step(1)
        share = min(1.0, step / 4)
        assert learner.rates == pytest.approx([0.5 * share, 0.25 * share])
    # Steps of 0, ¼, ½, ¾ and all of the rate.
    assert float(first.detach()[0]) == pytest.approx(1 - 0.5 * 2.5)
    assert float(second.detach()[0]) == pytest.approx(1 - 0.25 * 2.5)


def test_gradients_are_cut_to_their_norm(tmp_path: Path) -> None:
    parameter = one(0.0)
    learner = Learner([({"a": parameter}, 0.5)], config(tmp_path, **SGD, max_grad_norm=1.0), 8, CPU)
    descend(learner, parameter, (3.0, 4.0))
    assert parameter.tolist() == pytest.approx([-0.5 * 0.6, -0.5 * 0.8], rel=1e-4)
    assert parameter.grad is None


def test_the_running_mean_is_what_is_written_and_the_last_weights_go_on(tmp_path: Path) -> None:
    parameter = one(0.0)
    told = config(tmp_path, **SGD, ema_decay=0.5, max_grad_norm=0)
    learner = Learner([({"a": parameter}, 0.5)], told, 8, CPU)
    mean, value = 0.0, 0.0
    for step in range(1, 7):
        descend(learner, parameter, (1.0, 0.0))
        value -= 0.5
        # A young mean forgets faster: the decay of the n-th update, from 0, is at most (1 + n)/(10 + n).
        decay = min(0.5, step / (9 + step)) if step > 1 else 0.0
        mean = decay * mean + (1 - decay) * value
    with learner.averaged():
        assert float(parameter.detach()[0]) == pytest.approx(mean)
    assert float(parameter.detach()[0]) == pytest.approx(value)


def test_a_learner_goes_on_from_its_state(tmp_path: Path) -> None:
    told = config(tmp_path, optimizer_type="AdamW", ema_decay=0.9, lr_scheduler="cosine")
    parameters = [one(1.0), one(5.0)]
    learners = [Learner([({"a": each}, 0.1)], told, 8, CPU) for each in parameters]
    for _ in range(3):
        descend(learners[0], parameters[0], (1.0, -2.0))
    learners[1].load(copy.deepcopy(learners[0].state()))
    for learner, parameter in zip(learners, parameters, strict=True):
        descend(learner, parameter, (0.5, 3.0))
    assert torch.equal(parameters[0], parameters[1])
    assert learners[0].rates == learners[1].rates
    with learners[0].averaged(), learners[1].averaged():
        assert torch.equal(parameters[0], parameters[1])
