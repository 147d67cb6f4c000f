"""Strengths that vary within a picture: over the steps, by side and by place; and what is left when clones go."""

from __future__ import annotations

import gc
import sys
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import torch
from double.loras import File, patched

if TYPE_CHECKING:
    from comfyui.program import Comfy

LAYER = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
RISING = "<lora:ink:te=0:unet=0@0,1@1>"
A_CALL = pytest.mark.parametrize("a_call", [99, 1], ids=["one call", "a call for each condition"])


def weight(comfy: Comfy, *files: tuple[File, float]) -> torch.Tensor:
    """Return what the layer's weight comes to, in float64."""
    return patched(comfy.plain(), files).get(LAYER, comfy.plain()[LAYER].double())


def close(row: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.allclose(row.double(), expected, rtol=1e-5, atol=1e-5)


def hooks(patcher: Any) -> int:
    modules = patcher.model.modules()
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules)


@A_CALL
def test_a_strength_over_the_steps(comfy: Comfy, ink: File, a_call: int) -> None:
    comfy.memory.conditions_a_call = a_call
    model = comfy.tags(RISING)[0]
    for _ in range(2):
        for number, call in enumerate(comfy.sample(model, steps=5, images=2)):
            for rows in call.values():
                assert all(close(row, weight(comfy, (ink, number / 4))) for row in rows)


def test_what_varies_alone_loads_nothing(comfy: Comfy, ink: File) -> None:
    comfy.sample(comfy.model)
    before = comfy.model.model.loads
    comfy.sample(comfy.tags(RISING)[0])
    assert comfy.model.model.loads == before


def test_a_step_is_told_by_its_noise_level(comfy: Comfy, ink: File) -> None:
    """Also to samplers that ask between two levels, or for the end of a step, which is where the next one begins."""

    def levels(sigmas: torch.Tensor) -> list[float]:
        between = [float(one + other) / 2 for one, other in pairwise(sigmas)]
        return [level for pair in zip(sigmas[:-1].tolist(), between, strict=True) for level in pair]

    found = comfy.sample(comfy.tags(RISING)[0], steps=5, levels=levels)
    assert len(found) == 10
    for number, call in enumerate(found):
        assert close(call["positive", 0][0], weight(comfy, (ink, number // 2 / 4)))
    (last,) = comfy.sample(comfy.tags(RISING)[0], steps=5, levels=lambda sigmas: [float(sigmas[2])])
    assert close(last["positive", 0][0], weight(comfy, (ink, 2 / 4)))


@pytest.mark.parametrize(
    ("sigma", "sigmas", "step"),
    [
        (14.6, (14.6, 7.0, 3.0, 0.0), 0),
        (20.0, (14.6, 7.0, 3.0, 0.0), 0),
        (7.0003, (14.6, 7.0, 3.0, 0.0), 1),
        (6.9997, (14.6, 7.0, 3.0, 0.0), 1),
        (0.0, (14.6, 7.0, 3.0, 0.0), 2),
        (0.5, (0.0, 0.5, 1.0), 1),  # a picture that is turned into noise
        (1.0, (1.0,), 0),
    ],
)
def test_the_step_of_a_noise_level(comfy: Comfy, sigma: float, sigmas: tuple[float, ...], step: int) -> None:
    denoiser = sys.modules["lora_runtime_comfyui_extension.hosts.comfyui.denoiser"]
    moment = denoiser.moment_at(sigma, sigmas)
    assert (moment.step, moment.steps, moment.sigma) == (step, max(1, len(sigmas) - 1), sigma)


@A_CALL
def test_a_side_alone(comfy: Comfy, ink: File, wash: File, a_call: int) -> None:
    comfy.memory.conditions_a_call = a_call
    model, clip, *_ = comfy.tags("<lora:ink:0.7>", side="positive")
    model, *_ = comfy.tags("<lora:wash:0.4>", model, clip, side="negative")
    for call in comfy.sample(model, images=2, counts={"positive": 2, "negative": 1}):
        assert all(close(row, weight(comfy, (ink, 0.7))) for part in (0, 1) for row in call["positive", part])
        assert all(close(row, weight(comfy, (wash, 0.4))) for row in call["negative", 0])


def test_the_text_encoders_show_it_whatever_its_side(comfy: Comfy, ink: File) -> None:
    """Which text they are for, the wires say."""
    _, clip, *_ = comfy.tags("<lora:ink:0.7>", side="negative")
    loaded = comfy.loaded(comfy.model, clip)
    expected = {n: w for n, w in patched(comfy.plain(), [(ink, 0.7)]).items() if not n.startswith("model.")}
    assert expected
    assert all(close(loaded[name], exact) for name, exact in expected.items())


def test_conditions_of_which_nobody_can_tell_the_side_get_nothing_that_is_for_one(comfy: Comfy, ink: File) -> None:
    model = comfy.tags("<lora:ink:0.7>", side="positive")[0]
    comfy.memory.conditions_a_call = 1
    for call in comfy.sample(model, counts={"positive": 1, "middle": 1}):
        assert close(call["middle", 0][0], weight(comfy))
        assert close(call["positive", 0][0], weight(comfy, (ink, 0.7)))


def test_outside_of_a_sampling_it_is_the_only_step(comfy: Comfy, ink: File) -> None:
    model = comfy.tags("<lora:ink:te=0:unet=0.4@0,1@1>")[0]
    comfy.sample(model)
    options = {"wrappers": model.wrappers}
    with torch.inference_mode():
        rows = model.model.apply_model(torch.zeros(1, 4, 8, 8), torch.ones(1), transformer_options=options)
    assert close(rows[0], weight(comfy, (ink, 0.4)))


def test_what_acts_beside_goes_with_the_clone(comfy: Comfy, ink: File) -> None:
    model = comfy.tags(RISING)[0]
    comfy.sample(model)
    assert hooks(model) > 0
    comfy.sample(comfy.model)
    assert hooks(comfy.model) == 0


def test_what_a_clone_that_is_gone_has_left_is_gone_too(comfy: Comfy, ink: File) -> None:
    """The program forgets it: it takes the one that the clone was made from for the one that is loaded."""
    comfy.sample(comfy.tags(RISING)[0])
    gc.collect()
    assert hooks(comfy.model) == 0
    assert all(close(call["positive", 0][0], weight(comfy)) for call in comfy.sample(comfy.model))


def test_clones_of_a_clone_have_it_too(comfy: Comfy, ink: File, wash: File) -> None:
    model, clip, *_ = comfy.tags(RISING)
    comfy.sample(model)
    further = model.clone()  # while the first is loaded: the program says that its injections are there
    for each in (further, model, further):
        assert close(comfy.sample(each, steps=3)[2]["positive", 0][0], weight(comfy, (ink, 1.0)))
    del further
    gc.collect()
    assert close(comfy.sample(model, steps=3)[2]["positive", 0][0], weight(comfy, (ink, 1.0)))
    more = comfy.tags("<lora:wash:te=0:unet=0@0,0.6@1>", model, clip)[0]
    assert close(comfy.sample(more, steps=3)[2]["positive", 0][0], weight(comfy, (ink, 1.0), (wash, 0.6)))
    assert close(comfy.sample(model, steps=3)[2]["positive", 0][0], weight(comfy, (ink, 1.0)))


def test_what_is_done_to_a_clone_that_is_not_loaded_leaves_the_loaded_one_alone(
    comfy: Comfy, ink: File, wash: File
) -> None:
    first = comfy.tags(RISING)[0]
    comfy.sample(first)
    further = first.clone()  # the program says that its injections are there, whichever is loaded later
    second = comfy.tags("<lora:wash:te=0:unet=0@0,0.6@1>")[0]
    comfy.sample(second)
    before = hooks(second)
    further.eject_model()
    assert hooks(second) == before > 0
    with torch.inference_mode():
        rows = second.model.apply_model(
            torch.zeros(1, 4, 8, 8), torch.ones(1), transformer_options={"wrappers": first.wrappers}
        )
    assert close(rows[0], weight(comfy, (wash, 0.6)))  # as in the last call that the loaded one was told of


def test_another_copy_of_the_model_gets_it(comfy: Comfy, ink: File, wash: File) -> None:
    """The program makes one where it needs another kind of patcher for its own hooks."""
    model = comfy.tags(f"{RISING}<lora:wash:0.4>")[0]
    copy, _ = comfy.checkpoint()
    other = model.clone(copy.model)
    last = comfy.sample(other, steps=3)[2]["positive", 0][0]
    assert close(last, weight(comfy, (ink, 1.0), (wash, 0.4)))


def test_a_region(comfy: Comfy, ink: File) -> None:
    """The layer is asked for the 4 columns of its weight as if they were tokens: of 2 × 2 cells, 0 and 2 lie left."""
    model, _, _, report = comfy.tags("<lora:ink:te=0:unet=1:box=0,0,1,1>")
    assert "LoRA" not in report
    everywhere, nowhere = weight(comfy, (ink, 1.0)), weight(comfy)
    assert close(comfy.sample(model)[0]["positive", 0][0], everywhere)
    half = comfy.sample(comfy.tags("<lora:ink:te=0:unet=1:box=0,0,0.5,1>")[0])[0]["positive", 0][0]
    assert close(half[:, [0, 2]], everywhere[:, [0, 2]])
    assert close(half[:, [1, 3]], nowhere[:, [1, 3]])
