"""Strengths that vary on real (tiny) pipelines: each picture against runs whose strengths are constant."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import diffusers
import pytest
import tiny
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import lora_runtime
from lora_runtime.wildcards import draw_name

NAMES = ("ink", "wash", "grain", "rain")
STEPS = 3


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny.pipeline("sd1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, pipe: Any) -> Path:
    made = tmp_path_factory.mktemp("loras")
    for seed, name in enumerate(NAMES, start=1):
        tiny.write_kohya_lora(made / f"{name}.safetensors", pipe, rank=3, seed=seed, std=0.3)
    return made


@pytest.fixture(autouse=True)
def _leaves_no_trace(pipe: Any) -> Any:
    """Look after each test that no hook, no attribute and no changed bit is left."""
    before = {
        (part, name): p.detach().clone()
        for part in ("unet", "text_encoder")
        for name, p in getattr(pipe, part).named_parameters()
    }
    yield
    lora_runtime.restore(pipe)
    for part in ("unet", "text_encoder"):
        component: nn.Module = getattr(pipe, part)
        for name, value in component.named_parameters():
            assert torch.equal(value, before[part, name]), name
        for name, module in component.named_modules():
            assert not module._forward_hooks and not module._forward_pre_hooks, name
    assert "step" not in vars(pipe.scheduler)


def paint(pipe: Any, prompt: str | list[str], seeds: int | list[int] = 0, **more: Any) -> Tensor:
    """Return latents after three steps."""
    each = [torch.Generator().manual_seed(seed) for seed in ([seeds] if isinstance(seeds, int) else seeds)]
    more = {"num_inference_steps": STEPS, "guidance_scale": 3.0, "generator": each, **more}
    return pipe(prompt, height=32, width=32, output_type="latent", **more).images


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


def test_a_curve_that_is_level_is_the_number(pipe: Any, folder: Path) -> None:
    with lora_runtime.apply(pipe, "a<lora:ink:0.6>", loras=folder) as applied:
        expected = paint(pipe, applied.prompt)
    with lora_runtime.apply(pipe, "a<lora:ink:te=0.6:unet=0.6@0,0.6@1>", loras=folder) as applied:
        assert applied.report.live > 0
        assert applied.report.loras[0].live > 0
        close(paint(pipe, applied.prompt), expected)


def test_a_curve_is_what_a_strength_set_before_each_step_is(pipe: Any, folder: Path) -> None:
    strengths = (0.2, 0.6, 1.0)

    def next_strength(_: Any, step: int, *__: Any) -> dict[str, Any]:
        if step + 1 < STEPS:
            lora_runtime.apply(pipe, f"<lora:ink:te=0.5:unet={strengths[step + 1]}>", loras=folder)
        return {}

    lora_runtime.apply(pipe, f"<lora:ink:te=0.5:unet={strengths[0]}>", loras=folder)
    expected = paint(pipe, "a", callback_on_step_end=next_strength)
    with lora_runtime.apply(pipe, "a<lora:ink:te=0.5:unet=0.2@0,1@1>", loras=folder) as applied:
        close(paint(pipe, applied.prompt), expected)
        close(paint(pipe, applied.prompt), expected)


def test_a_window_holds_for_its_steps(pipe: Any, folder: Path) -> None:
    def start(_: Any, step: int, *__: Any) -> dict[str, Any]:
        if step == 0:
            lora_runtime.apply(pipe, "<lora:ink:0.8>", loras=folder)
        return {}

    lora_runtime.apply(pipe, "<lora:ink:0.8:0>", loras=folder)
    expected = paint(pipe, "a", callback_on_step_end=start)
    with lora_runtime.apply(pipe, "a<lora:ink:0.8:start=1s>", loras=folder) as applied:
        close(paint(pipe, applied.prompt), expected)


def test_what_is_constant_is_merged_and_what_varies_is_beside_it(pipe: Any, folder: Path) -> None:
    query = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q
    with lora_runtime.apply(pipe, "<lora:wash:0.5>", loras=folder):
        washed = query.weight.detach().clone()
    with lora_runtime.apply(pipe, "a<lora:wash:0.5><lora:ink:0.6>", loras=folder) as applied:
        expected = paint(pipe, applied.prompt)
    with lora_runtime.apply(pipe, "a<lora:ink:te=0.6:unet=0.6@0,0.6@1><lora:wash:0.5>", loras=folder) as applied:
        assert torch.equal(query.weight, washed)
        assert len(query._forward_hooks) == 1
        close(paint(pipe, applied.prompt), expected)
        ink = next(report for report in applied.report.loras if report.name == "ink")
        assert 0 < ink.live < ink.used
        assert "live" in str(applied.report)


def test_four_pictures_of_one_batch_have_each_its_own(pipe: Any, folder: Path) -> None:
    prompts = [f"{letter}<lora:{name}:0.8>" for letter, name in zip("abcd", NAMES, strict=True)]
    alone = []
    for seed, prompt in enumerate(prompts):
        with lora_runtime.apply(pipe, prompt, loras=folder) as applied:
            alone.append(paint(pipe, applied.prompt, seed))
    with lora_runtime.apply(pipe, prompts, loras=folder) as applied:
        assert applied.prompt == ["a", "b", "c", "d"]
        close(paint(pipe, applied.prompt, [0, 1, 2, 3]), torch.cat(alone))


def test_a_batch_in_which_some_have_no_tags_and_some_share_one(pipe: Any, folder: Path) -> None:
    prompts = ["a<lora:ink:0.8><lora:wash:0.3>", "b", "c<lora:wash:0.3><lora:ink:0.4>"]
    alone = []
    for seed, prompt in enumerate(prompts):
        with lora_runtime.apply(pipe, prompt, loras=folder) as applied:
            alone.append(paint(pipe, applied.prompt, [seed, seed + 7], num_images_per_prompt=2))
    with lora_runtime.apply(pipe, prompts, loras=folder) as applied:
        got = paint(pipe, applied.prompt, [0, 7, 1, 8, 2, 9], num_images_per_prompt=2)
    close(got, torch.cat(alone))


def test_tags_of_the_negative_prompt_act_on_its_side_of_the_guidance(pipe: Any, folder: Path) -> None:
    """By hand: ε = ε₋ + g·(ε₊ − ε₋), ε₋ of the model with the LoRA in its weights, ε₊ of the model without."""
    scale, latents = 3.0, torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        positive, negative = (pipe.encode_prompt(word, "cpu", 1, False)[0] for word in "ab")
        with lora_runtime.apply(pipe, "<lora:ink:0.8>", loras=folder):
            negative = pipe.encode_prompt("b", "cpu", 1, False)[0]
        pipe.scheduler.set_timesteps(STEPS)
        expected = latents
        for time in pipe.scheduler.timesteps:
            with_it = pipe.unet(expected, time, encoder_hidden_states=positive).sample
            with lora_runtime.apply(pipe, "<lora:ink:0.8>", loras=folder):
                against = pipe.unet(expected, time, encoder_hidden_states=negative).sample
            noise = against + scale * (with_it - against)
            expected = pipe.scheduler.step(noise, time, expected).prev_sample
    applied = lora_runtime.apply(pipe, "a", negative_prompt="b<lora:ink:0.8>", negative_tags="apply", loras=folder)
    assert applied.negative_prompt == "b"
    assert not applied.diagnostics
    close(paint(pipe, applied.prompt, negative_prompt=applied.negative_prompt, latents=latents), expected)


def test_a_schedule_of_a_text_encoder_is_its_first_value(pipe: Any, folder: Path) -> None:
    with lora_runtime.apply(pipe, "a<lora:ink:te=0.3:unet=0>", loras=folder) as applied:
        expected = paint(pipe, applied.prompt)
    with lora_runtime.apply(pipe, "a<lora:ink:te=0.3@0,1@1:unet=0>", loras=folder) as applied:
        assert applied.report.live == 0
        assert torch.equal(paint(pipe, applied.prompt), expected)


def test_the_second_pass_has_its_own_strength(pipe: Any, folder: Path) -> None:
    query = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.weight
    weights = {}
    for strength in (0.4, 0.9):
        with lora_runtime.apply(pipe, f"<lora:ink:{strength}>", loras=folder):
            weights[strength] = query.detach().clone()
    for hires, strength in ((False, 0.4), (True, 0.9)):
        with lora_runtime.apply(pipe, "<lora:ink:0.4:hr=0.9>", loras=folder, hires=hires):
            assert torch.equal(query, weights[strength])


def test_random_block_weights_are_the_seed_s(pipe: Any, folder: Path) -> None:
    prompt = f"<lora:ink:1:lbw={','.join(['1', *'R' * 11, *'U' * 5])}>"

    def weights(**more: Any) -> list[Tensor]:
        with lora_runtime.apply(pipe, prompt, loras=folder, **more):
            return [parameter.detach().clone() for parameter in pipe.unet.parameters()]

    first, again, other = weights(seeds=3), weights(seeds=3), weights(seeds=4)
    assert all(map(torch.equal, first, again))
    assert not all(map(torch.equal, first, other))


def test_pictures_of_a_batch_draw_by_their_own_seeds(pipe: Any, folder: Path) -> None:
    prompt = f"a<lora:ink:0.5:lbw={','.join(['1', *'R' * 16])}>"
    alone = []
    for seed in (3, 4):
        with lora_runtime.apply(pipe, prompt, loras=folder, seeds=seed) as applied:
            alone.append(paint(pipe, applied.prompt, seed))
    with lora_runtime.apply(pipe, [prompt] * 2, loras=folder, seeds=[3, 4]) as applied:
        close(paint(pipe, applied.prompt, [3, 4]), torch.cat(alone))


def test_pictures_of_a_batch_draw_a_file_each(pipe: Any, folder: Path) -> None:
    seeds = [0, 1, 2, 3]
    names = [draw_name("*", NAMES, seed) for seed in seeds]
    assert len(set(names)) > 1
    with lora_runtime.apply(pipe, [f"a<lora:{name}:0.8>" for name in names], loras=folder) as applied:
        expected = paint(pipe, applied.prompt, seeds)
    with lora_runtime.apply(pipe, ["a<lora:*:0.8>"] * 4, loras=folder, seeds=seeds) as applied:
        assert torch.equal(paint(pipe, applied.prompt, seeds), expected)


def test_the_order_of_tags_that_vary_changes_no_bit(pipe: Any, folder: Path) -> None:
    tags = ["<lora:ink:0.1:0@0,1@1>", "<lora:ink:0.2:0@0,1@1>", "<lora:ink:0.7:0@0,1@1>", "<lora:wash:0.3:0.5@0,0@1>"]
    pictures = []
    for order in (tags, tags[::-1], [tags[1], tags[3], tags[0], tags[2]]):
        with lora_runtime.apply(pipe, "a" + "".join(order), loras=folder) as applied:
            pictures.append(paint(pipe, applied.prompt))
    assert torch.equal(pictures[0], pictures[1])
    assert torch.equal(pictures[0], pictures[2])


def test_an_exception_in_the_pipeline_restores(pipe: Any, folder: Path) -> None:
    def fail(*_: Any) -> dict[str, Any]:
        raise ZeroDivisionError

    plain = paint(pipe, "a")
    with (
        pytest.raises(ZeroDivisionError),
        lora_runtime.apply(pipe, "a<lora:ink:0@0,1@1>", loras=folder) as applied,
    ):
        paint(pipe, applied.prompt, callback_on_step_end=fail)
    assert torch.equal(paint(pipe, "a"), plain)


def test_a_later_apply_ends_what_acted_and_its_clock(pipe: Any, folder: Path) -> None:
    first = lora_runtime.apply(pipe, "<lora:ink:0@0,1@1>", loras=folder)
    with lora_runtime.apply(pipe, "a<lora:wash:0.5>", loras=folder) as applied:
        merged = paint(pipe, applied.prompt)
    lora_runtime.apply(pipe, "<lora:ink:0@0,1@1>", loras=folder)
    lora_runtime.apply(pipe, "a<lora:wash:0.5>", loras=folder)
    first.at(1, 2)
    assert torch.equal(paint(pipe, "a"), merged)
    assert not any(module._forward_hooks for module in pipe.unet.modules())


def test_a_region_leaves_the_rest_of_the_first_layer_alone(pipe: Any, folder: Path) -> None:
    latents, text = torch.randn(1, 4, 16, 16), torch.zeros(1, 5, tiny.WIDTH["sd1"])
    found = {}
    for prompt in ("", "<lora:ink:0.9>", "<lora:ink:0.9:box=0,0,0.5,1>"):
        outputs: list[Tensor] = []
        with torch.no_grad(), lora_runtime.apply(pipe, prompt, loras=folder):
            hook = pipe.unet.conv_in.register_forward_hook(lambda *given, seen=outputs: seen.append(given[2]))
            pipe.unet(latents, 500, encoder_hidden_states=text)
            hook.remove()
        found[prompt] = outputs[0]
    bare, everywhere, left = found.values()
    torch.testing.assert_close(left[..., :8], everywhere[..., :8], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(left[..., 8:], bare[..., 8:], rtol=1e-5, atol=1e-5)


def test_a_mask_that_is_not_there_costs_its_tag(pipe: Any, folder: Path) -> None:
    applied = lora_runtime.apply(pipe, "<lora:ink:0.9:mask=nothing.png><lora:wash:0.5>", loras=folder)
    assert [report.name for report in applied.report.loras] == ["wash"]
    assert any("there is no mask nothing.png in" in diagnostic.message for diagnostic in applied.diagnostics)
    with pytest.raises(lora_runtime.LoraError, match="there is no mask"):
        lora_runtime.apply(pipe, "<lora:ink:0.9:mask=nothing.png>", loras=folder, strict=True)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch looks at it while it compiles
@pytest.mark.parametrize("inside", [False, True], ids=["torch.compile", ".compile()"])
def test_compiled_code_is_made_anew_for_what_acts_beside_it(inside: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
    save_file(
        {"0.lora_A.weight": torch.randn(2, 6), "0.lora_B.weight": torch.randn(6, 2)}, tmp_path / "ink.safetensors"
    )
    model: Any = plain if inside else torch.compile(plain, backend="eager")
    if inside:
        plain[0].compile(backend="eager")
    inputs = torch.randn(3, 6)
    before = model(inputs).detach()
    with lora_runtime.apply(plain, "<lora:ink:0.25>", loras=tmp_path):
        merged = model(inputs).detach()
    with lora_runtime.apply(model, "<lora:ink:1@0,0@1>", loras=tmp_path) as applied:
        for step, same in ((3, merged), (4, before)):
            applied.at(step, 5)
            torch.testing.assert_close(model(inputs), same, rtol=1e-5, atol=1e-6)
    assert torch.equal(model(inputs), before)


@pytest.mark.parametrize(("te", "notes"), [("1@0,0@1", 1), ("0.5@0,0.5@1", 0), ("0.5", 0)])
def test_a_schedule_of_a_text_encoder_is_noted_where_it_would_change_anything(
    pipe: Any, folder: Path, te: str, notes: int
) -> None:
    with lora_runtime.apply(pipe, f"a <lora:ink:te={te}:unet=0.5>", loras=folder) as applied:
        said = [d for d in applied.diagnostics if "runs once, before the first step" in d.message]
    assert [d.severity for d in said] == ["info"] * notes


# ---- calls that are not those of the pipeline and its prompts --------------------------------------------------------


def plain(pipe: Any, tensors: dict[str, Tensor], strengths: tuple[float, ...]) -> Tensor:
    """Return the picture of the pipeline with W₀ + strength · delta in its UNet, set before each step."""
    unet = copy.deepcopy(pipe.unet)
    deltas = []
    for path, module in unet.named_modules():
        stem = f"lora_unet_{path.replace('.', '_')}"
        if f"{stem}.lora_up.weight" in tensors:
            up, down = (tensors[f"{stem}.lora_{part}.weight"].double() for part in ("up", "down"))
            scale = float(tensors.get(f"{stem}.alpha", down.shape[0])) / len(down)
            weight = module.weight.detach().double()
            deltas.append((module, weight, (up.flatten(1) @ down.flatten(1)).view(weight.shape) * scale))
    left = iter(strengths)

    def before(*_: Any) -> None:
        strength = next(left)
        for module, weight, delta in deltas:
            module.weight.data = (weight + strength * delta).float()

    unet.register_forward_pre_hook(before)
    other = copy.copy(pipe)
    other.unet = unet
    return paint(other, "a")


def test_a_preview_by_another_pipeline_leaves_the_strengths_of_the_picture(pipe: Any, tmp_path: Path) -> None:
    tensors = tiny.write_kohya_lora(tmp_path / "ink.safetensors", pipe, rank=3, std=0.3, components=("unet",))
    expected, on = plain(pipe, tensors, (1, 0, 0, 0)), plain(pipe, tensors, (1, 1, 0, 0))
    assert not torch.allclose(expected, on)
    other = copy.copy(pipe)
    other.scheduler = copy.deepcopy(pipe.scheduler)
    previews = []

    def preview(_: Any, step: int, *__: Any) -> dict[str, Any]:
        if step == 0:
            previews.append(paint(other, "a"))
        return {}

    with lora_runtime.apply(pipe, "a<lora:ink:1:stop=1>", loras=tmp_path):
        close(paint(pipe, "a", callback_on_step_end=preview), expected)
        previews.append(paint(other, "a"))
    for preview_ in previews:
        close(preview_, expected)


CANNOT = "cannot be told"


@pytest.mark.parametrize("count", [1, 3])
def test_other_prompts_than_those_of_apply_are_left_alone_and_that_is_said(pipe: Any, folder: Path, count: int) -> None:
    prompts, seeds = ["a", "b", "c"][:count], list(range(count))
    expected = paint(pipe, prompts, seeds)
    with lora_runtime.apply(pipe, ["a<lora:ink:te=0:unet=1>", "b"], loras=folder) as applied:
        assert not applied.diagnostics
        assert torch.equal(paint(pipe, prompts, seeds), expected)
        assert [CANNOT in diagnostic.message for diagnostic in applied.diagnostics] == [True]


def test_sides_in_calls_that_the_pipeline_does_not_make_are_said_not_to_be_told(pipe: Any, folder: Path) -> None:
    """A program that halves the batch of a guided pipeline."""
    latents, text = torch.randn(2, 4, 8, 8), torch.randn(2, 5, tiny.WIDTH["sd1"])
    pipe._guidance_scale = 3.0  # as within a call
    with (
        torch.no_grad(),
        lora_runtime.apply(pipe, "a", negative_prompt="<lora:ink>", negative_tags="apply", loras=folder) as applied,
    ):
        for half in (slice(0, 1), slice(1, 2)):
            pipe.unet(latents[half], torch.tensor(500), text[half])
        assert [CANNOT in diagnostic.message for diagnostic in applied.diagnostics] == [True]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' schedulers
@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")
def test_a_step_that_cannot_be_told_is_said_where_strengths_follow_steps(pipe: Any, folder: Path) -> None:
    pipe = copy.copy(pipe)
    pipe.scheduler = diffusers.EulerDiscreteScheduler()
    latents, text = torch.randn(1, 4, 8, 8), torch.randn(1, 5, tiny.WIDTH["sd1"])
    for prompts, said in ((["a<lora:ink:1:stop=2>"], [True]), (["a<lora:ink>", "b"], [])):
        with lora_runtime.apply(pipe, prompts, loras=folder) as applied, torch.no_grad():
            paint(pipe, applied.prompt, [0, 1][: len(prompts)])
            assert not applied.diagnostics
            pipe.unet(latents.repeat(2 * len(prompts), 1, 1, 1), torch.tensor(3.5), text.repeat(2 * len(prompts), 1, 1))
            assert [CANNOT in diagnostic.message for diagnostic in applied.diagnostics] == said
