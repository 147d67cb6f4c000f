"""The extension in SD.Next itself, on a CPU: for one LoRA the picture that the program paints by itself."""

from __future__ import annotations

from typing import Any

import pytest
import sdnext_program as program

ONE = "a red circle <lora:watercolor:0.7>"
# Both add in float32, in another order.
LEVELS = 2.0


@pytest.fixture(scope="session")
def plain(run: program.SDNext) -> tuple[program.Picture, dict[str, str]]:
    """Return the picture without a tag, and the hashes of the weights that it was painted with."""
    picture, state = run.paint("a red circle"), run.state()
    return picture, {name: state[name] for name in ("unet", "text")}


@pytest.fixture
def with_text(run: program.SDNext) -> Any:
    """Have LoRAs act on the text encoder too."""
    run.post("/sdapi/v1/options", lora_apply_te=True)
    yield
    run.post("/sdapi/v1/options", lora_apply_te=False)


def test_it_starts_owns_the_tags_and_tells_of_an_unknown_name(run: program.SDNext) -> None:
    assert "not started" not in run.log
    assert run.state()["owner"].endswith("hosts.sdnext.tags")
    assert 'no LoRA named "nothing-of-that-name"' in run.paint("a cat <lora:nothing-of-that-name:1>").notices
    assert "nothing-of-that-name" in run.log


def test_without_a_tag_the_picture_is_that_of_the_program(plain: Any, builtin: dict[str, program.Picture]) -> None:
    assert plain[0] == builtin["a red circle"]


@pytest.mark.parametrize(
    "prompt",
    [
        ONE,
        "a red circle <lora:outline:0.5>",
        "a red circle <lora:watercolor:unet=0.9>",
        "a red circle <lora:watercolor:0.7> <lora:outline:0.5>",
    ],
)
def test_loras_paint_what_the_program_paints_with_them(
    run: program.SDNext, builtin: dict[str, program.Picture], prompt: str
) -> None:
    picture = run.paint(prompt)
    assert picture.difference(builtin[prompt]) <= LEVELS
    assert builtin[prompt].difference(builtin["a red circle"]) > 20 * LEVELS
    assert picture.notices == ""


@pytest.mark.parametrize("prompt", ["a red heart <lora:heart:1>", "a red heart <lora:heart:te=0.5:unet=0.8>"])
def test_one_that_changes_the_text_encoder_too(
    run: program.SDNext, with_text: None, builtin: dict[str, program.Picture], prompt: str
) -> None:
    assert run.paint(prompt).difference(builtin[prompt]) <= LEVELS
    assert builtin[prompt].difference(builtin["a red heart"]) > 20 * LEVELS


def test_the_text_encoder_is_left_alone_unless_the_setting_says_so(run: program.SDNext, plain: Any) -> None:
    picture = run.paint("a red heart <lora:heart:1>")
    assert run.state()["text"] == plain[1]["text"]
    assert picture == run.paint("a red heart <lora:heart:te=0:unet=1>")
    assert "text encoder is left as it is" in run.paint("a red heart <lora:heart:te=0.5:unet=1>").notices


def test_the_order_of_tags_changes_no_bit(run: program.SDNext) -> None:
    first = run.paint("a red circle <lora:watercolor:0.7> <lora:outline:0.5> <lora:stripes:0.3>")
    weights = run.state()["unet"]
    run.paint("a red circle")
    assert run.paint("a red circle <lora:stripes:0.3> <lora:outline:0.5> <lora:watercolor:0.7>") == first
    assert run.state()["unet"] == weights


def test_a_lora_twice_is_the_sum_of_its_strengths(run: program.SDNext) -> None:
    assert run.paint("a red circle <lora:watercolor:0.3> <lora:watercolor:0.4>") == run.paint(ONE)


@pytest.mark.parametrize("other", ["<lora:nothing-of-that-name:1>", "<lora:outline:x>", "<lora:outline:1e9>"])
def test_a_tag_that_cannot_be_used_costs_itself_and_is_said(run: program.SDNext, other: str) -> None:
    picture = run.paint(f"{ONE} {other}")
    assert picture == run.paint(ONE)
    assert picture.notices.count("LoRA error") == 1


def test_a_changed_strength_is_the_one_that_acts(run: program.SDNext) -> None:
    """The program's own LoRA keeps the first one, and breaks the weights."""
    first = run.paint("a red circle <lora:watercolor:1>")
    run.paint("a red circle")
    run.paint("a red circle <lora:watercolor:0.5>")
    assert run.paint("a red circle <lora:watercolor:1>") == first


def test_afterwards_all_weights_are_what_they_were(run: program.SDNext, with_text: None, plain: Any) -> None:
    run.paint("a red circle <lora:watercolor:0.7> <lora:heart:0.5> <lora:outline:unet=0@0,1@1>")
    assert run.state()["unet"] != plain[1]["unet"]
    assert run.state()["text"] != plain[1]["text"]
    assert run.paint("a red circle") == plain[0]
    state = run.state()
    assert {name: state[name] for name in plain[1]} == plain[1]


def test_a_strength_over_the_steps(run: program.SDNext) -> None:
    rising = run.paint("a red circle <lora:watercolor:unet=0@0,1@1>")
    assert rising.difference(run.paint("a red circle <lora:watercolor:1>")) > LEVELS
    assert rising.difference(run.paint("a red circle")) > LEVELS
    assert run.paint("a red circle <lora:watercolor:unet=0.7@0,0.7@1>").difference(run.paint(ONE)) <= LEVELS
    assert run.paint(f"{ONE[:-1]}:stop=0>") == run.paint("a red circle")


def test_block_weights_and_a_region(run: program.SDNext) -> None:
    everywhere = run.paint(ONE)
    assert run.paint("a red circle <lora:watercolor:in=0.7:mid=0.7:out=0.7>").difference(everywhere) <= LEVELS
    assert run.paint("a red circle <lora:watercolor:in=0:mid=0.7:out=0.7>").difference(everywhere) > LEVELS
    assert run.paint("a red circle <lora:watercolor:0.7:box=0,0,1,1>").difference(everywhere) <= LEVELS
    half = run.paint("a red circle <lora:watercolor:0.7:box=0,0,0.5,1>")
    assert min(half.difference(everywhere), half.difference(run.paint("a red circle"))) > LEVELS


def test_the_pictures_of_a_batch_have_their_own_loras(run: program.SDNext, with_text: None) -> None:
    both = run.paint("a red heart <lora:heart:1> || a red heart", batch_size=2)
    alone = [run.paint("a red heart <lora:heart:1>", seed=1), run.paint("a red heart", seed=2)]
    for made, expected in zip(both.pixels[-2:], alone, strict=True):
        assert abs(made - expected.pixels[0]).max() <= LEVELS
    assert alone[0].difference(run.paint("a red heart", seed=1)) > 20 * LEVELS


def test_prompts_that_are_encoded_together_are_said_to_be(run: program.SDNext, with_text: None) -> None:
    run.post("/sdapi/v1/options", prompt_attention="fixed")
    try:
        both = run.paint("a red heart <lora:heart:1> || a red heart", batch_size=2)
        assert "all pictures have those of the first prompt" in both.notices
        assert run.paint("a red heart <lora:heart:1>").notices == ""
    finally:
        run.post("/sdapi/v1/options", prompt_attention="native")


def test_a_word_in_a_file_is_what_it_is_as_an_embedding_of_the_user_s_own(run: program.SDNext) -> None:
    without = run.paint("a red zqxword")
    with_word = run.paint("a red zqxword <lora:words:1>")
    assert with_word == run.paint("a red ownword")
    assert with_word.notices == ""
    assert with_word != without
    assert run.paint("a red zqxword") == without


def test_the_other_names_of_the_tag(run: program.SDNext) -> None:
    assert run.paint("a red circle <lyco:watercolor:0.7>") == run.paint(ONE)
    assert "unknown extra network" not in run.log


def test_a_tag_in_the_negative_prompt_is_said(run: program.SDNext) -> None:
    picture = run.paint("a red circle", negative_prompt="blue <lora:watercolor:1>")
    assert "<lora:watercolor:1> in the negative prompt is not applied" in picture.notices


HIRES = {"enable_hr": True, "hr_scale": 2, "hr_upscaler": "Latent", "hr_force": True, "hr_second_pass_steps": 4}
HIRES |= {"denoising_strength": 0.5, "hr_denoising_strength": 0.5}


def test_the_second_pass(run: program.SDNext, plain: Any) -> None:
    """A pipeline of another class around the same components; tags of its own where it has a prompt of its own."""
    both, neither = run.paint(ONE, **HIRES), run.paint("a red circle", **HIRES)
    second = run.paint("a red circle", refiner_prompt=ONE, **HIRES)
    assert min(both.difference(neither), second.difference(neither), second.difference(both)) > LEVELS
    assert run.paint(ONE, **HIRES) == both
    assert "hr=" in run.paint(f"{ONE[:-1]}:hr=0>", **HIRES).notices
    assert run.paint("a red circle") == plain[0]
    assert run.state()["unet"] == plain[1]["unet"]


def test_a_picture_from_a_picture(run: program.SDNext) -> None:
    import base64
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(run.paint("a red circle").pixels[0].astype("uint8")).save(file, "PNG")
    body = {"init_images": [base64.b64encode(file.getvalue()).decode()], "denoising_strength": 0.8, "steps": 6}
    body |= {"width": 48, "height": 48, "seed": 1, "cfg_scale": 4, "sampler_name": "DDIM"}

    def paint(prompt: str) -> program.Picture:
        return program.Picture(run.post("/sdapi/v1/img2img", prompt=prompt, **body))

    with_lora, without = paint(ONE), paint("a red circle")
    assert with_lora.difference(without) > 20 * LEVELS
    assert paint(ONE) == with_lora


def test_a_checkpoint_switch(run: program.SDNext) -> None:
    before = run.paint(ONE)
    run.get("/probe/checkpoint", name=program.CHECKPOINTS[1])
    try:
        assert run.paint(ONE) == before  # the same weights under another name
    finally:
        run.get("/probe/checkpoint", name=program.CHECKPOINTS[0])
    assert run.paint(ONE) == before


@pytest.mark.parametrize("mode", ["model", "balanced"])
def test_offloading(run: program.SDNext, plain: Any, mode: str) -> None:
    expected = run.paint(ONE)
    run.paint("a red circle")
    try:
        assert run.get("/probe/offload", mode=mode)["hooks"] != []
        assert run.paint("a red circle") == plain[0]
        assert run.paint(ONE) == expected
        assert run.paint("a red circle <lora:watercolor:unet=0.7@0,0.7@1>").difference(expected) <= LEVELS
        assert run.paint("a red circle") == plain[0]
    finally:
        run.get("/probe/offload", mode="none")
    assert run.state()["unet"] == plain[1]["unet"]


@pytest.mark.parametrize("kept", [False, True], ids=["fused", "kept as copies"])
def test_what_the_program_did_before_is_named_or_put_back(run: program.SDNext, plain: Any, kept: bool) -> None:
    run.post("/sdapi/v1/options", lora_fuse_native=not kept)
    run.get("/probe/tags", ours=False)
    run.paint(ONE)
    run.get("/probe/tags", ours=True)
    run.post("/sdapi/v1/options", lora_fuse_native=True)
    picture = run.paint("a red circle")
    if kept:
        assert picture == plain[0]
        assert picture.notices == ""
        assert run.state()["unet"] == plain[1]["unet"]
    else:
        assert picture != plain[0]
        assert 'fused "watercolor" into this checkpoint' in picture.notices
        assert 'click "Reload model" in System' in picture.notices
        run.get("/probe/checkpoint", name=program.CHECKPOINTS[0])  # what the button does
        again = run.paint("a red circle")
        assert again == plain[0]
        assert again.notices == ""


SDNQ = {"sdnq_quantize_weights": ["Model"], "sdnq_quantize_weights_mode": "int8", "sdnq_dequantize_compile": False}


@pytest.mark.parametrize("mode", ["int8", "uint4"])
def test_a_quantised_checkpoint(run: program.SDNext, mode: str) -> None:
    """LoRAs act on it as on dense weights, nearly, and its numbers are afterwards what they were."""
    dense = run.paint(ONE)
    run.post("/sdapi/v1/options", **{**SDNQ, "sdnq_quantize_weights_mode": mode})
    try:
        state = run.get("/probe/checkpoint", name=program.CHECKPOINTS[0])
        assert "SDNQLinear" in state["layers"]
        before = run.paint("a red circle")
        with_lora = run.paint(ONE)
        assert with_lora.notices == ""
        apart = [abs(picture.pixels[0] - dense.pixels[0]).mean() for picture in (with_lora, before)]
        assert apart[0] < 0.8 * apart[1]
        assert run.paint("a red circle") == before
        assert run.state()["unet"] == state["unet"]
    finally:
        run.post("/sdapi/v1/options", sdnq_quantize_weights=[])
        run.get("/probe/checkpoint", name=program.CHECKPOINTS[0])
