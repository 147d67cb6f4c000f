"""Strengths that depend on step, picture, side, pass and block: in the real program, through its API."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import loras
import numpy as np
import program
import pytest

# Mean differences in levels of 255: of pictures that are equal but for sums in another order, and of pictures that a
# LoRA has changed. Another seed is 40 levels away, the share of the text encoder 0.07.
EQUAL, OTHER = 0.02, 0.05
VARYING = "a cat <lora:sd1:te=0:unet=0@0,1@1>"
HIRES = {"enable_hr": True, "hr_scale": 2, "hr_upscaler": "Latent", "denoising_strength": 1.0}


@pytest.fixture(scope="module")
def run(webui: Path, data: Path) -> Iterator[program.WebUI]:
    """Run the program with four LoRAs of one checkpoint."""
    files, checkpoint = data / "models" / "Lora", data / "models" / "Stable-diffusion" / "sd1-a.safetensors"
    for index, name in enumerate(("one", "two", "three", "four")):
        loras.write(files / f"{name}.safetensors", checkpoint, seed=10 + index)
    with program.WebUI(webui, data) as running:
        yield running


@pytest.fixture(autouse=True)
def _defaults(run: program.WebUI) -> None:
    run.set_options(
        sd_model_checkpoint="sd1-a.safetensors",
        batch_cond_uncond=True,
        pad_cond_uncond=False,
        s_min_uncond=0,
        skip_early_cond=0,
        lora_runtime_negative_tags="words (as the WebUI)",
        lora_runtime_scope="whole picture",
    )


def told(run: program.WebUI, prompt: str, **job: Any) -> list[dict[str, Any]]:
    """Return what the live modules were told at each call of the UNet."""
    run.post("/probe/forget-calls")
    run.txt2img(prompt, **job)
    return run.get("/probe/calls")


def pictures(picture: program.Picture) -> list[Any]:
    """Return the pictures of a batch without the grid before them."""
    return picture.pixels[picture.info["index_of_first_image"] :]


# --- steps ---


@pytest.mark.parametrize(
    ("varying", "constant"),
    [
        ("te=0.3:unet=1:stop=0", "te=0.3:unet=0"),
        ("0.8@0,0.8@1", "0.8"),
        ("0.8:start=0", "0.8"),
        ("te=0.8:unet=0@0,0@1", "te=0.8:unet=0"),
    ],
)
def test_a_strength_that_could_vary_and_does_not_is_a_number(run: program.WebUI, varying: str, constant: str) -> None:
    before = run.digest()
    expected = run.txt2img(f"a cat <lora:sd1:{constant}>")
    picture = run.txt2img(f"a cat <lora:sd1:{varying}>")
    assert not picture.notices
    assert picture.difference(expected) < EQUAL
    assert expected.difference(run.txt2img("a cat")) > OTHER
    assert run.digest() == before


def test_a_window_changes_the_picture_by_its_length(run: program.WebUI) -> None:
    pictured = [run.txt2img(f"a cat <lora:sd1:te=0:unet=1:stop={steps}>") for steps in range(5)]
    assert pictured[4].difference(run.txt2img("a cat <lora:sd1:te=0:unet=1>")) < EQUAL
    assert pictured[0].difference(run.txt2img("a cat")) == 0
    distances = [picture.difference(pictured[0]) for picture in pictured]
    assert all(distance > 0 for distance in distances[1:])


# Sampler: how many calls of the UNet in 4 steps, and the steps that they belong to.
ONE = [0, 1, 2, 3]
TWO = [0, 0, 1, 1, 2, 2, 3]
SAMPLERS = {
    "Euler": ONE,
    "Euler a": ONE,
    "LMS": ONE,
    "DPM++ 2M": ONE,
    "DPM++ 2M SDE": ONE,
    "DPM++ 3M SDE": ONE,
    "LCM": ONE,
    "Heun": TWO,
    "DPM2": TWO,
    "DPM2 a": TWO,
    "DPM++ 2S a": TWO,
    "DPM++ SDE": TWO,
    "Restart": TWO,
    "DPM fast": ONE,
    "UniPC": ONE,
    "DDIM": [0, 1, 2],
    "PLMS": None,
    "DPM adaptive": None,
}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_each_sampler_keeps_a_strength_for_a_step(run: program.WebUI, sampler: str) -> None:
    calls = told(run, VARYING, sampler_name=sampler)
    found = [call["step"] for call in calls]
    assert {call["steps"] for call in calls} == {4}
    assert found == sorted(found)
    assert max(found) <= 3
    if SAMPLERS[sampler] is not None:
        assert found == SAMPLERS[sampler]


@pytest.mark.parametrize("sampler", ["Euler", "Heun", "DDIM", "UniPC"])
def test_noise_levels_fall(run: program.WebUI, sampler: str) -> None:
    sigmas = [call["sigma"] for call in told(run, VARYING, sampler_name=sampler)]
    assert 3 < sigmas[0] < 200
    assert sigmas[-1] < 3
    assert sigmas == sorted(sigmas, reverse=True)


def test_the_hires_pass_begins_anew(run: program.WebUI) -> None:
    calls = told(run, VARYING, **HIRES, hr_second_pass_steps=3)
    assert [call["step"] for call in calls] == [0, 1, 2, 3, 0, 1, 2]
    assert [call["steps"] for call in calls] == [4] * 4 + [3] * 3
    assert [call["grid"] for call in calls] == [[8, 8]] * 4 + [[16, 16]] * 3


def test_a_lora_for_the_hires_pass_alone(run: program.WebUI) -> None:
    only = run.txt2img("a cat <lora:sd1:0:hr=0.8>", **HIRES)
    apart = run.txt2img("a cat ", hr_prompt="a cat <lora:sd1:0.8>", **HIRES)
    assert only.difference(apart) < EQUAL
    assert only.difference(run.txt2img("a cat <lora:sd1:0>", **HIRES)) > OTHER


def test_img2img_counts_the_steps_that_it_makes(run: program.WebUI) -> None:
    body = {"width": 64, "height": 64, "steps": 8, "seed": 1, "cfg_scale": 4, "denoising_strength": 0.5}
    start = run.post("/sdapi/v1/txt2img", prompt="a cat", width=64, height=64, steps=4, seed=1)["images"]
    for sampler, count in (("Euler", 5), ("Heun", 9)):
        run.post("/probe/forget-calls")
        run.post("/sdapi/v1/img2img", prompt=VARYING, init_images=start, sampler_name=sampler, **body)
        calls = run.get("/probe/calls")
        assert len(calls) == count
        assert {call["steps"] for call in calls} == {5}
        assert sorted({call["step"] for call in calls}) == [0, 1, 2, 3, 4]


# --- pictures ---

TAGS = ("<lora:one:0.7>", "<lora:two:0.6>", "<lora:three:0.8>", "<lora:four:te=1:unet=0.5>")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch_cond_uncond": False},
        {"pad_cond_uncond": True},
        {"s_min_uncond": 20},
        {"skip_early_cond": 0.5},
    ],
    ids=lambda options: next(iter(options), "usual"),
)
def test_four_pictures_of_one_batch_with_four_loras(run: program.WebUI, options: dict[str, Any]) -> None:
    run.set_options(**options)
    job = {"negative_prompt": "ugly", "s_min_uncond": options.get("s_min_uncond", 0)}
    prompts = [f"a cat {tag}" for tag in TAGS]
    batch = pictures(run.txt2img("|||".join(prompts), batch_size=4, **job))
    singles = [pictures(run.txt2img(prompt, seed=1 + index, **job))[0] for index, prompt in enumerate(prompts)]
    assert len(batch) == 4
    for together, alone in zip(batch, singles, strict=True):
        assert np.abs(together - alone).mean() < EQUAL
    plain = pictures(run.txt2img("a cat ", **job))[0]
    assert np.abs(batch[0] - plain).mean() > OTHER


def test_rows_of_prompts_with_parts(run: program.WebUI) -> None:
    """Of each picture its parts, then of each picture the negative prompt; here in two calls."""
    run.set_options(batch_cond_uncond=False)
    calls = told(run, f"{VARYING}|||a dog AND a cat", batch_size=2)
    assert [call["rows"] for call in calls[:3]] == [
        [[0, "positive", 0], [1, "positive", 0]],
        [[1, "positive", 1], [0, "negative", -1]],
        [[1, "negative", -1]],
    ]


def test_each_picture_of_the_hires_pass_has_its_own(run: program.WebUI) -> None:
    prompts = ["a cat <lora:one:0.7:hr=0.2>", "a cat <lora:two:0.6>"]
    batch = pictures(run.txt2img("|||".join(prompts), batch_size=2, **HIRES))
    for index, prompt in enumerate(prompts):
        alone = pictures(run.txt2img(prompt, seed=1 + index, **HIRES))[0]
        assert np.abs(batch[index] - alone).mean() < EQUAL


def test_a_lora_of_the_negative_side(run: program.WebUI) -> None:
    """Both sides of the guidance with one LoRA are the picture of that LoRA."""
    run.set_options(lora_runtime_negative_tags="apply to the negative side")
    words = run.txt2img("a cat ", negative_prompt="ugly ")
    negative = run.txt2img("a cat ", negative_prompt="ugly <lora:sd1:0.7>")
    assert not negative.notices
    assert "Negative prompt: ugly <lora:sd1:0.7>" in negative.infotext
    assert negative.difference(words) > OTHER
    assert negative.difference(run.txt2img("a cat <lora:sd1:0.7>", negative_prompt="ugly ")) > OTHER
    nothing = run.txt2img("a cat ", negative_prompt="ugly <lora:sd1:0>")
    assert nothing.difference(words) == 0


def test_a_tag_acts_on_its_part_alone(run: program.WebUI) -> None:
    """In both parts and on neither side of the negative prompt it is not the same as on all; on no part it is none."""
    run.set_options(lora_runtime_scope="its part of the prompt (AND)")
    first = run.txt2img("a cat <lora:sd1:0.7> AND a dog")
    second = run.txt2img("a cat AND a dog <lora:sd1:0.7>")
    assert first.difference(second) > OTHER
    nothing = run.txt2img("a cat <lora:sd1:0> AND a dog")
    assert first.difference(nothing) > OTHER
    assert not first.notices


def test_prompt_editing_takes_the_tag_along(run: program.WebUI) -> None:
    whole = run.txt2img("a [cat <lora:sd1:te=0:unet=0.7>:dog:0.5]")
    run.set_options(lora_runtime_scope="while its words are in the prompt")
    half = run.txt2img("a [cat <lora:sd1:te=0:unet=0.7>:dog:0.5]")
    run.set_options(lora_runtime_scope="whole picture")
    assert half.difference(run.txt2img("a [cat <lora:sd1:te=0:unet=0.7:stop=2>:dog:0.5]")) < EQUAL
    assert half.difference(whole) > 0


# --- block weights and regions ---


def test_block_weights(run: program.WebUI, data: Path) -> None:
    every = run.txt2img("a cat <lora:sd1:0.7>")
    assert run.txt2img("a cat <lora:sd1:0.7:lbw=ALL>").notices == []
    none = run.txt2img("a cat <lora:sd1:0.7:lbw=NONE>")
    base = run.txt2img("a cat <lora:sd1:0.7:BASE=1:IN00-11=0:M00=0:OUT00-11=0>")
    out = run.txt2img("a cat <lora:sd1:0.7:lbw=OUTALL>")
    assert len({picture.pixels[0].tobytes() for picture in (every, none, base, out)}) == 4
    (data / "lora_runtime_presets.txt").write_text("HALF:" + ",".join(["0.5"] * 26), encoding="utf-8")
    half = run.txt2img("a cat <lora:sd1:0.8:lbw=HALF>")
    by_rules = run.txt2img("a cat <lora:sd1:0.8:BASE=0.5:IN00-OUT11=0.5>")
    assert half.difference(by_rules) == 0
    assert not half.notices


def test_random_block_weights_are_those_of_the_seed(run: program.WebUI) -> None:
    prompt = "a cat <lora:sd1:0.7:lbw=" + ",".join(["R"] * 17) + ">"
    batch = pictures(run.txt2img(prompt, batch_size=2, seed=5))
    for index in (0, 1):
        alone = pictures(run.txt2img(prompt, seed=5 + index))[0]
        assert np.abs(batch[index] - alone).mean() < EQUAL


def test_a_box_of_the_whole_picture_is_no_box(run: program.WebUI) -> None:
    whole = run.txt2img("a cat <lora:sd1:te=0:unet=0.7>")
    left = run.txt2img("a cat <lora:sd1:te=0:unet=0.7:box=0,0,0.5,1>")
    none = run.txt2img("a cat <lora:sd1:te=0:unet=0>")
    assert left.difference(whole) > 0
    assert left.difference(none) > 0
    assert {notice["severity"] for notice in left.notices} <= {"note"}


# --- its life ---


def test_weights_and_modules_are_whole_afterwards(run: program.WebUI) -> None:
    before = run.digest()
    plain = run.txt2img("a cat ")
    run.txt2img(f"{VARYING}|||a cat <lora:one:0.5>", batch_size=2)
    assert run.txt2img("a cat ").difference(plain) == 0
    assert run.digest() == before
    assert run.state()["hooks"] == 0


def test_the_refiner_goes_on_with_the_schedule(run: program.WebUI) -> None:
    job = {"refiner_checkpoint": "sd1-b.safetensors", "refiner_switch_at": 0.5}
    calls = told(run, VARYING, **job)
    assert [call["step"] for call in calls] == [0, 1, 2, 3]
    one = run.txt2img("a cat <lora:sd1:0.8@0,0.8@1>", **job)
    assert one.difference(run.txt2img("a cat <lora:sd1:0.8>", **job)) < EQUAL
    run.txt2img("a cat ")
    assert run.state()["hooks"] == 0


def test_sdxl_and_sd2(run: program.WebUI) -> None:
    for kind in ("sd2", "sdxl"):
        run.set_options(sd_model_checkpoint=f"{kind}.safetensors")
        prompts = [f"a cat <lora:{kind}:0.7>", "a cat "]
        batch = pictures(run.txt2img("|||".join(prompts), batch_size=2))
        for index, prompt in enumerate(prompts):
            alone = pictures(run.txt2img(prompt, seed=1 + index))[0]
            assert np.abs(batch[index] - alone).mean() < EQUAL
        varying = run.txt2img(f"a cat <lora:{kind}:0.7@0,0.7@1>")
        assert varying.difference(run.txt2img(f"a cat <lora:{kind}:0.7>")) < EQUAL
        assert not varying.notices
