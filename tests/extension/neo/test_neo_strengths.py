"""Strengths that vary within a picture: over the steps, by picture, side, part and place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from double.loras import File, patched

if TYPE_CHECKING:
    from neo.program import Neo

LAYER = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
A_CALL = pytest.mark.parametrize("a_call", [99, 1], ids=["one call", "a call for each condition"])


def weight(neo: Neo, *files: tuple[File, float]) -> torch.Tensor:
    """Return what the layer's weight comes to, in float64."""
    return patched(neo.plain(), files).get(LAYER, neo.plain()[LAYER].double())


def close(rows: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.allclose(rows.double(), expected, rtol=1e-5, atol=1e-5)


def steps_of(done: Any) -> list[dict[tuple[str, int], torch.Tensor]]:
    steps: list[dict[tuple[str, int], torch.Tensor]] = done.passes[0].effective
    return steps


def test_a_strength_over_the_steps(neo: Neo, ink: File) -> None:
    done = neo.generate("<lora:ink:te=0:unet=0@0,1@1>", steps=5)
    for number, step in enumerate(steps_of(done)):
        for rows in step.values():
            assert close(rows[0], weight(neo, (ink, number / 4)))


def test_hooks_go_with_the_tags(neo: Neo, ink: File) -> None:
    neo.generate("<lora:ink:te=0:unet=0@0,1@1>")
    unet = neo.model.forge_objects_original.unet.model.diffusion_model
    assert any(module._forward_hooks for module in unet.modules())
    done = neo.generate("a cat")
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in unet.modules())
    assert close(steps_of(done)[0]["positive", 0][0], weight(neo))


def test_what_varies_alone_loads_nothing(neo: Neo, ink: File) -> None:
    neo.generate("a cat")
    before = neo.loads[0]
    neo.generate("<lora:ink:te=0:unet=0@0,1@1>")
    assert neo.loads[0] == before


@A_CALL
def test_the_pictures_of_a_batch_have_their_own(neo: Neo, ink: File, wash: File, a_call: int) -> None:
    neo.memory.conditions_a_call = a_call
    done = neo.generate(["<lora:ink:0.7> a", "b", "<lora:wash:0.4> c"], batch_size=3)
    for step in steps_of(done):
        for rows in step.values():
            assert close(rows[0], weight(neo, (ink, 0.7)))
            assert close(rows[1], weight(neo))
            assert close(rows[2], weight(neo, (wash, 0.4)))


def test_each_of_them_is_encoded_with_its_own(neo: Neo, ink: File, wash: File) -> None:
    done = neo.generate(["<lora:ink:0.7> a", "a", "<lora:wash:0.4> a"], batch_size=3)
    name = next(name for name in patched(neo.plain(), [(ink, 1.0)]) if not name.startswith("model."))
    for parts, files in zip(done.passes[0].text, ([(ink, 0.7)], [], [(wash, 0.4)]), strict=True):
        expected = patched(neo.plain(), files).get(name, neo.plain()[name].double())
        assert close(parts[0].weights[name], expected)


@A_CALL
def test_a_side_alone(neo: Neo, ink: File, a_call: int) -> None:
    neo.memory.conditions_a_call = a_call
    neo.options.lora_runtime_negative_tags = "apply to the negative side"
    step = steps_of(neo.generate("a cat", negative_prompt="a dog <lora:ink:0.7>"))[0]
    assert close(step["negative", 0][0], weight(neo, (ink, 0.7)))
    assert close(step["positive", 0][0], weight(neo))


@A_CALL
def test_a_part_of_a_prompt_alone(neo: Neo, ink: File, a_call: int) -> None:
    neo.memory.conditions_a_call = a_call
    neo.options.lora_runtime_scope = "its part of the prompt (AND)"
    done = neo.generate(["a cat AND a dog <lora:ink:0.7> AND a house"] * 2, batch_size=2)
    for step in steps_of(done):
        for part, files in enumerate(([], [(ink, 0.7)], [])):
            assert all(close(row, weight(neo, *files)) for row in step["positive", part])
        assert all(close(row, weight(neo)) for row in step["negative", 0])


def test_an_extension_that_puts_tiles_into_one_call_gets_each_row_as_it_is(neo: Neo, ink: File) -> None:
    """Three times the rows are three tiles of all of them."""
    neo.options.lora_runtime_negative_tags = "apply to the negative side"
    seen = []

    def tiles(p: Any) -> None:
        model = p.sd_model.forge_objects.unet.model
        whole = type(model).apply_model.__get__(model)

        def apply_model(x: Any, t: Any, **given: Any) -> Any:
            out = whole(torch.cat([x] * 3), torch.cat([t] * 3), **given)
            seen.append(out.chunk(3))
            return out.chunk(3)[0]

        model.apply_model = apply_model

    network = neo.owner("lora")
    before = network.before_conditioning
    network.before_conditioning = lambda p: (before(p), tiles(p))
    neo.generate("a cat", negative_prompt="a dog <lora:ink:0.7>", steps=1)
    assert seen
    for one in seen:
        assert all(torch.equal(part, one[0]) for part in one)
    rows = seen[0][0]
    assert sorted(close(row, weight(neo, (ink, 0.7))) for row in rows) == [False, True]


def test_a_call_whose_rows_nobody_can_tell_gets_nothing_that_is_for_some(neo: Neo, ink: File) -> None:
    neo.generate("a cat")
    neo.options.lora_runtime_negative_tags = "apply to the negative side"
    neo.generate("a cat", negative_prompt="<lora:ink:0.7>")
    unet = neo.model.forge_objects_original.unet.model
    with torch.inference_mode():
        rows = unet.apply_model(torch.zeros(2, 4, 8, 8), torch.ones(2))
    assert all(close(row, weight(neo)) for row in rows)
