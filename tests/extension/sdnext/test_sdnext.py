"""The extension in SD.Next: who owns the tags, what a pass is painted with, and what is left afterwards."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

if TYPE_CHECKING:
    from extension.sdnext.program import SDNext

ONE = "a cat <lora:ink:0.7>"


def unet_with(file: Path, strength: float) -> dict[str, Tensor]:
    """Return the UNet's weights with a LoRA, by the formula in float64: W + strength · alpha/rank · up·down."""
    model, tensors = tiny.pipeline().unet, load_file(file)
    found = {name: tensor.double() for name, tensor in model.state_dict().items()}
    for path, module in model.named_modules():
        stem = f"lora_unet_{path.replace('.', '_')}"
        if f"{stem}.alpha" in tensors:
            up, down = (tensors[f"{stem}.lora_{end}.weight"].double() for end in ("up", "down"))
            scale = strength * float(tensors[f"{stem}.alpha"]) / len(down)
            delta = (up.flatten(1) @ down.flatten(1)).reshape(module.weight.shape)
            found[f"{path}.weight"] += scale * delta
    return found


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def without(start_sdnext: Callable[..., SDNext], **given: Any) -> Tensor:
    """Return what the program paints by itself."""
    return start_sdnext(ours=False).paint("a cat", **given)


# --- who owns the tags ---


def test_it_owns_the_tags_and_says_so_in_the_log(sdnext: SDNext) -> None:
    assert type(sdnext.owner).__module__.endswith("hosts.sdnext.tags")
    assert sdnext.log == ["INFO LoRA Runtime: owns <lora:…>; SD.Next's own LoRA is idle"]


def test_a_restart_hands_the_tags_over_to_itself(sdnext: SDNext) -> None:
    before, plain = sdnext.owner, sdnext.paint("a cat")
    painted = sdnext.paint(ONE)
    sdnext.restart()
    assert sdnext.owner is not before
    assert torch.equal(sdnext.paint("a cat"), plain)
    assert torch.equal(sdnext.paint(ONE), painted)


def test_an_unloaded_extension_leaves_nothing(sdnext: SDNext) -> None:
    embedder = sdnext.module("prompt_parser_diffusers").PromptEmbedder
    plain = dict(sdnext.weights())
    sdnext.paint(ONE)
    assert not same(dict(sdnext.weights()), plain)
    sdnext.module("script_callbacks").run("script_unloaded")
    assert same(dict(sdnext.weights()), plain)
    assert sdnext.owner is sdnext.module("lora.lora_common").extra_network_lora
    assert "lyco" not in sdnext.module("extra_networks").extra_network_registry
    for method in (embedder.__init__, embedder.encode, embedder.clone_embeds):
        assert method.__module__ == embedder.__module__ and not hasattr(method, "__wrapped__")
    assert not any(sdnext.module("script_callbacks").callback_map.values())


@pytest.mark.parametrize("lacking", ["sd_offload.disable_offload", "modeldata.model_data", "logger.log"])
def test_a_version_without_what_is_needed_keeps_its_own_lora(
    start_sdnext: Callable[..., SDNext], capsys: pytest.CaptureFixture[str], lacking: str
) -> None:
    module, name = lacking.split(".")
    started = start_sdnext(ours=False)
    shim = Path(__file__).parents[3] / "scripts" / "lora_runtime_webui.py"
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(started.module(module), name)
        runpy.run_path(str(shim))
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("[lora-runtime] not started")
    assert f"this SD.Next has no modules.{lacking}" in line
    assert "Use its own LoRA" in line
    assert not any(started.module("script_callbacks").callback_map.values())


def test_what_fails_before_the_ui_is_undone(start_sdnext: Callable[..., SDNext]) -> None:
    """A table of owners that takes no second kind of tag."""
    started = start_sdnext(ours=False)
    extra_networks = started.module("extra_networks")
    register = extra_networks.register_extra_network

    def refuse(network: Any) -> None:
        if network.name == "loractl":
            raise RuntimeError("no more")
        register(network)

    started.extensions = [Path(__file__).parents[3]]
    extra_networks.register_extra_network = refuse
    started.start()
    assert started.owner is started.module("lora.lora_common").extra_network_lora
    assert set(extra_networks.extra_network_registry) == {"lora"}
    assert any("not started, SD.Next's own LoRA stays: RuntimeError: no more" in line for line in started.log)
    assert started.module("script_callbacks").callback_map["callbacks_before_process"] == []


def test_where_another_has_taken_the_tag_all_weights_are_whole(sdnext: SDNext) -> None:
    plain = dict(sdnext.weights())
    sdnext.paint(ONE)
    registry = sdnext.module("extra_networks").extra_network_registry
    registry["lora"] = sdnext.module("lora.lora_common").extra_network_lora
    p = sdnext.job("a cat")
    assert same(dict(sdnext.weights()), plain)
    assert "modules.lora.extra_networks_lora has the tag" in sdnext.notices(p)


# --- what a pass is painted with ---


def test_without_a_tag_nothing_differs(sdnext: SDNext) -> None:
    ours = sdnext.paint("a cat")
    sdnext.module("script_callbacks").run("script_unloaded")
    assert torch.equal(sdnext.paint("a cat"), ours)


def test_one_lora_is_the_formula(sdnext: SDNext) -> None:
    p = sdnext.job(ONE)
    expected = unet_with(sdnext.loras / "ink.safetensors", 0.7)
    (weights,) = p.painted.weights
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, expected[name].float(), rtol=0, atol=2e-7, msg=name)
    assert sdnext.notices(p) == ""
    assert p.extra_generation_params["LoRA networks"] == "ink"


def test_the_order_of_tags_changes_no_bit(sdnext: SDNext) -> None:
    first = sdnext.job("a cat <lora:ink:0.7> <lora:wash:0.3>").painted
    sdnext.paint("a cat")
    second = sdnext.job("a cat <lora:wash:0.3> <lora:ink:0.7>").painted
    assert torch.equal(first.latents[0], second.latents[0])
    assert same(first.weights[0], second.weights[0])


def test_a_lora_twice_is_the_sum_and_a_changed_strength_is_the_new_one(sdnext: SDNext) -> None:
    seven = sdnext.paint(ONE)
    assert torch.equal(sdnext.paint("a cat <lora:ink:0.3> <lora:ink:0.4>"), seven)
    assert not torch.equal(sdnext.paint("a cat <lora:ink:0.2>"), seven)
    assert torch.equal(sdnext.paint(ONE), seven)


@pytest.mark.parametrize("bad", ["<lora:nothing:1>", "<lora:wash:x>", "<lora:wash:1e9>"])
def test_a_bad_tag_costs_itself_and_is_said_in_log_and_picture(sdnext: SDNext, bad: str) -> None:
    p = sdnext.job(f"{ONE} {bad}")
    assert torch.equal(p.painted.latents[0], sdnext.paint(ONE))
    assert sdnext.notices(p).startswith("LoRA error: column ")
    assert f"ERROR LoRA Runtime: {sdnext.notices(p)}" in sdnext.log


def test_afterwards_all_weights_are_what_they_were(sdnext: SDNext) -> None:
    plain, picture = dict(sdnext.weights()), sdnext.paint("a cat")
    sdnext.paint("a cat <lora:ink:0.7> <lora:wash:unet=0@0,1@1>", lora_apply_te=True)
    assert torch.equal(sdnext.paint("a cat"), picture)
    assert same(dict(sdnext.weights()), plain)


def test_the_text_encoder_is_changed_by_a_setting_alone(sdnext: SDNext) -> None:
    plain = dict(sdnext.weights())
    unet_alone = sdnext.paint("a cat <lora:ink:te=0:unet=1>")
    assert torch.equal(sdnext.paint("a cat <lora:ink:1>"), unet_alone)
    text = {name: tensor for name, tensor in sdnext.weights().items() if name.startswith("text.")}
    assert all(torch.equal(tensor, plain[name]) for name, tensor in text.items())
    both = sdnext.paint("a cat <lora:ink:1>", lora_apply_te=True)
    assert not torch.equal(both, unet_alone)
    assert torch.equal(sdnext.paint("a cat <lora:ink:te=0:unet=1>", lora_apply_te=True), unet_alone)


def test_a_strength_for_the_text_encoder_alone_is_said_to_be_idle(sdnext: SDNext) -> None:
    said = sdnext.notices(sdnext.job("a cat <lora:ink:te=0.5:unet=1>"))
    assert 'the text encoder is left as it is, whatever is asked of it by "ink"' in said
    assert sdnext.notices(sdnext.job("a cat <lora:ink:te=0.5:unet=1>", lora_apply_te=True)) == ""
    assert sdnext.notices(sdnext.job("a cat <lora:ink:te=0:unet=1>")) == ""


def test_a_file_for_the_text_encoder_alone_is_said_to_be_idle(sdnext: SDNext) -> None:
    tiny.write_kohya_lora(sdnext.loras / "words.safetensors", tiny.pipeline(), components=("text_encoder",))
    p = sdnext.job("a cat <lora:words:1> <lora:ink:0.7>")
    assert torch.equal(p.painted.latents[0], sdnext.paint(ONE))
    assert "LoRA warning: the text encoder is left as it is" in sdnext.notices(p)
    assert 'by "words" (SD.Next applies LoRAs to it with the setting' in sdnext.notices(p)
    assert sdnext.notices(sdnext.job("a cat <lora:words:1>", lora_apply_te=True)) == ""


def test_a_file_written_anew_is_seen_though_the_prompt_is_the_same(sdnext: SDNext) -> None:
    """Also by the program's store of encoded prompts, which knows tags by their texts."""
    first = sdnext.paint("a cat <lora:ink:te=1:unet=0>", lora_apply_te=True)
    path = sdnext.loras / "ink.safetensors"
    save_file({key: tensor * 3 for key, tensor in load_file(path).items()}, path)
    assert not torch.equal(sdnext.paint("a cat <lora:ink:te=1:unet=0>", lora_apply_te=True), first)


def test_the_pictures_of_a_batch_have_their_own_loras(sdnext: SDNext) -> None:
    """Equal texts too, which the program encodes once. The tags that it hands over are those of the second."""
    prompts = ["a cat <lora:ink:0.7>", "a cat <lora:wash:1>", "a cat"]
    together = sdnext.paint(prompts, batch_size=3, lora_apply_te=True)
    for index, prompt in enumerate(prompts):
        alone = sdnext.paint(prompt, seed=1 + index, lora_apply_te=True)
        torch.testing.assert_close(together[index : index + 1], alone, rtol=0, atol=1e-4)
    assert not torch.allclose(sdnext.paint("a cat", lora_apply_te=True), together[:1], atol=1e-2)


def test_batches_of_another_size_tell_their_rows_anew(sdnext: SDNext) -> None:
    """The same requests as before, for two of three pictures instead of two of two."""
    sdnext.paint([ONE, "a cat <lora:wash:1>"], batch_size=2)
    together = sdnext.paint([ONE, "a cat <lora:wash:1>", "a cat"], batch_size=3)
    for index, prompt in enumerate([ONE, "a cat <lora:wash:1>", "a cat"]):
        alone = sdnext.paint(prompt, seed=1 + index)
        torch.testing.assert_close(together[index : index + 1], alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize("prompts", [[ONE, "a cat"], [ONE, "a dog <lora:ink:0.7>"]], ids=["different", "alike"])
def test_prompts_that_the_pipeline_encodes_together(sdnext: SDNext, prompts: list[str]) -> None:
    """Then the text encoders cannot show each prompt's own LoRAs, which matters where these differ."""
    sdnext.options.prompt_attention = "fixed"
    said = sdnext.notices(sdnext.job(prompts, batch_size=2, lora_apply_te=True))
    assert ("all pictures have those of the first prompt" in said) is (prompts[1] == "a cat")
    assert sdnext.notices(sdnext.job(prompts, batch_size=2)) == ""
    sdnext.options.prompt_attention = "native"
    assert sdnext.notices(sdnext.job(prompts, batch_size=2, lora_apply_te=True)) == ""


# --- words that files bring along ---


def bundle(file: Path, count: int, seed: int = 0) -> Tensor:
    """Write a LoRA file with nothing but the word zqx; return its vectors."""
    vectors = torch.randn(count, tiny.WIDTH["sd1"], generator=torch.Generator().manual_seed(seed))
    save_file({"bundle_emb.zqx.string_to_param.*": vectors}, file)
    return vectors


@pytest.mark.parametrize("count", [1, 3])
def test_a_word_in_a_file_means_what_diffusers_reads_it_as(sdnext: SDNext, count: int) -> None:
    """The judge is the same program with the word loaded for good by diffusers, without our tag."""
    vectors = bundle(sdnext.loras / "pivotal.safetensors", count)
    p = sdnext.job("a zqx cat <lora:pivotal:1>")
    assert sdnext.notices(p) == ""
    plain = sdnext.paint("a zqx cat")
    sdnext.model.load_textual_inversion(vectors, token="zqx")
    sdnext.module("prompt_parser_diffusers").cache.clear()
    assert torch.equal(p.painted.latents[0], sdnext.paint("a zqx cat"))
    assert not torch.equal(p.painted.latents[0], plain)


def test_a_word_is_known_for_the_time_of_a_picture(sdnext: SDNext) -> None:
    """So that what the program adds to the tokenizer in between stays."""
    plain, vocabulary = sdnext.paint("a zqx cat"), sdnext.model.tokenizer.get_vocab()
    bundle(sdnext.loras / "pivotal.safetensors", 2)
    sdnext.paint("a zqx cat <lora:pivotal:1>")
    assert sdnext.model.tokenizer.get_vocab() == vocabulary
    sdnext.model.tokenizer.add_tokens(["own"])
    assert torch.equal(sdnext.paint("a zqx cat"), plain)
    sdnext.paint("a zqx cat <lora:pivotal:1>")
    assert "own" in sdnext.model.tokenizer.get_vocab()


def test_a_word_that_is_written_anew_is_encoded_anew(sdnext: SDNext) -> None:
    """Though the tag is the same, and asks nothing of the text encoder's weights."""
    bundle(sdnext.loras / "pivotal.safetensors", 1)
    first = sdnext.paint("a zqx cat <lora:pivotal:1>")
    bundle(sdnext.loras / "pivotal.safetensors", 1, seed=1)
    assert not torch.equal(sdnext.paint("a zqx cat <lora:pivotal:1>"), first)


def test_a_word_for_another_model_is_said(sdnext: SDNext) -> None:
    save_file({"bundle_emb.zqx.string_to_param.*": torch.randn(1, 7)}, sdnext.loras / "pivotal.safetensors")
    said = sdnext.notices(sdnext.job("a zqx cat <lora:pivotal:1>"))
    assert 'the embedding "zqx" in "pivotal" is not loaded: it is made for words 7 wide' in said


def test_a_picture_that_fails_leaves_no_word(sdnext: SDNext) -> None:
    bundle(sdnext.loras / "pivotal.safetensors", 1)
    vocabulary = sdnext.model.tokenizer.get_vocab()
    step = sdnext.model.scheduler.__class__.step
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="no step"):
        patch.setattr(sdnext.model.scheduler.__class__, "step", _no_step)
        sdnext.job("a zqx cat <lora:pivotal:1>")
    assert sdnext.model.scheduler.__class__.step is step
    sdnext.job("a cat")
    assert sdnext.model.tokenizer.get_vocab() == vocabulary


def _no_step(*_: Any, **__: Any) -> None:
    raise RuntimeError("no step")


# --- scripts and other names ---


def test_prompts_that_a_script_has_changed(sdnext: SDNext) -> None:
    """The tags that the program hands over count, for all pictures."""
    p = sdnext.job(["a cat <lora:wash:1>", "a cat"], batch_size=2, changed_by_script=["a cat", ONE])
    expected = unet_with(sdnext.loras / "ink.safetensors", 0.7)
    torch.testing.assert_close(p.painted.weights[0]["conv_in.weight"], expected["conv_in.weight"].float())
    assert "a script has changed the prompts" in sdnext.notices(p)


def test_the_other_names_of_the_tag(sdnext: SDNext) -> None:
    for kind in ("lyco", "loractl"):
        assert torch.equal(sdnext.paint(ONE.replace("lora:", f"{kind}:")), sdnext.paint(ONE))
    assert torch.equal(sdnext.paint("a cat <lora:ink:0.3> <lyco:ink:0.4>"), sdnext.paint(ONE))
    assert not any("unknown extra network" in line for line in sdnext.log)


def test_tags_in_the_negative_prompt_are_said(sdnext: SDNext) -> None:
    p = sdnext.job("a cat", negative_prompt="blue <lora:ink:1>")
    assert "<lora:ink:1> in the negative prompt is not applied; SD.Next reads it as words" in sdnext.notices(p)


# --- over the steps ---


def test_a_strength_over_the_steps_follows_the_scheduler(sdnext: SDNext) -> None:
    """`stop=0` is none; a constant one is that of the weights; one that begins late leaves the first steps alone."""
    assert torch.equal(sdnext.paint("a cat <lora:ink:0.7:stop=0>"), sdnext.paint("a cat"))
    constant = sdnext.paint("a cat <lora:ink:unet=0.7@0,0.7@1>", steps=4)
    torch.testing.assert_close(constant, sdnext.paint(ONE, steps=4), rtol=0, atol=1e-4)
    late = sdnext.paint("a cat <lora:ink:unet=0@0,0@0.5,0.7@0.5,0.7@1>", steps=4)
    for other in (constant, sdnext.paint("a cat", steps=4)):
        assert not torch.allclose(late, other, atol=1e-3)


def test_sides_in_calls_of_their_own(sdnext: SDNext) -> None:
    """As a guider calls the denoiser: what acts beside the weights tells both calls of one step as one."""
    sdnext.module("processing").sides_apart = True
    constant = sdnext.paint("a cat <lora:ink:unet=0.7@0,0.7@1>")
    torch.testing.assert_close(constant, sdnext.paint(ONE), rtol=0, atol=1e-4)
    rising = sdnext.paint("a cat <lora:ink:unet=0@0,1@1>")
    sdnext.module("processing").sides_apart = False
    torch.testing.assert_close(rising, sdnext.paint("a cat <lora:ink:unet=0@0,1@1>"), rtol=0, atol=1e-3)


def test_the_second_pass_counts_its_own_steps(sdnext: SDNext) -> None:
    """Its sampler is another object than that of the first: what both paint is what `apply` does on each pipeline."""
    from diffusers import StableDiffusionImg2ImgPipeline

    import lora_runtime

    prompt = "a cat <lora:ink:te=0:unet=0.7@0,0.7@0.4,0@0.4,0@1>"
    made = sdnext.job(prompt, enable_hr=True, steps=4, hr_second_pass_steps=7).painted.latents
    pipe = tiny.pipeline()
    second = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    second.set_progress_bar_config(disable=True)
    given: dict[str, Any] = {"guidance_scale": 4.0, "output_type": "latent", "negative_prompt": ""}
    given["generator"] = [torch.Generator().manual_seed(1)]
    with lora_runtime.apply(pipe, prompt, loras=sdnext.loras) as applied:
        expected = pipe(applied.prompt, height=32, width=32, num_inference_steps=4, **given).images
    with lora_runtime.apply(second, prompt, loras=sdnext.loras) as applied:
        again = second(applied.prompt, image=expected, strength=0.9, num_inference_steps=7, **given).images
    torch.testing.assert_close(made[0], expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(made[1], again, rtol=0, atol=1e-5)


# --- pipelines, checkpoints ---


def test_the_second_pass_runs_in_another_pipeline(sdnext: SDNext) -> None:
    plain = dict(sdnext.weights())
    first, second = sdnext.job(ONE, enable_hr=True).painted.weights
    assert same(first, second)
    first, second = sdnext.job("a cat", enable_hr=True, refiner_prompt=ONE).painted.weights
    assert torch.equal(first["conv_in.weight"], plain["unet.conv_in.weight"])
    expected = unet_with(sdnext.loras / "ink.safetensors", 0.7)["conv_in.weight"].float()
    torch.testing.assert_close(second["conv_in.weight"], expected)
    sdnext.paint("a cat")
    assert same(dict(sdnext.weights()), plain)


def test_strengths_of_the_second_pass(sdnext: SDNext) -> None:
    """SD.Next asks for tags again only for a prompt of the second pass's own."""
    prompt = "a cat <lora:ink:0.7:hr=0.2>"
    assert "hr=) are not applied" in sdnext.notices(sdnext.job(prompt, enable_hr=True))
    p = sdnext.job(prompt, enable_hr=True, refiner_prompt=prompt)
    assert sdnext.notices(p) == ""
    for weights, strength in zip(p.painted.weights, (0.7, 0.2), strict=True):
        expected = unet_with(sdnext.loras / "ink.safetensors", strength)["conv_in.weight"].float()
        torch.testing.assert_close(weights["conv_in.weight"], expected)


def test_equal_tags_write_nothing_though_the_pipeline_is_another(sdnext: SDNext) -> None:
    sdnext.paint(ONE)
    before = sdnext.model.unet.conv_in.weight.data_ptr()
    processing, sd_models = sdnext.module("processing"), sdnext.module("sd_models")
    model_data = sdnext.module("modeldata").model_data
    model_data.sd_model = sd_models.set_diffuser_pipe(sdnext.model, processing.StableDiffusionImg2ImgPipeline)
    model_data.sd_model = sd_models.set_diffuser_pipe(sdnext.model, processing.StableDiffusionPipeline)
    sdnext.paint(f"{ONE}", seed=2)
    assert sdnext.model.unet.conv_in.weight.data_ptr() == before


def test_tags_that_are_gone_when_the_pipeline_is_another_one(sdnext: SDNext) -> None:
    """The pipeline that the LoRA was applied to does not exist any more; its components do."""
    plain = dict(sdnext.weights())
    sdnext.paint(ONE)
    processing, sd_models = sdnext.module("processing"), sdnext.module("sd_models")
    model_data = sdnext.module("modeldata").model_data
    model_data.sd_model = sd_models.set_diffuser_pipe(sdnext.model, processing.StableDiffusionImg2ImgPipeline)
    model_data.sd_model = sd_models.set_diffuser_pipe(sdnext.model, processing.StableDiffusionPipeline)
    sdnext.paint("a cat")
    assert same(dict(sdnext.weights()), plain)


def test_a_checkpoint_that_is_loaded_anew(sdnext: SDNext) -> None:
    painted = sdnext.paint(ONE)
    sdnext.reload()
    assert torch.equal(sdnext.paint(ONE), painted)


def test_another_text_encoder_in_the_same_pipeline(sdnext: SDNext) -> None:
    """As the program swaps one: the denoiser is given its weights back, and the new one is whole."""
    plain = dict(sdnext.weights())
    sdnext.paint(ONE, lora_apply_te=True)
    sdnext.model.text_encoder = tiny.text_encoder()
    sdnext.paint("a cat", lora_apply_te=True)
    assert same(dict(sdnext.weights()), plain)


# --- offloading ---


@pytest.mark.parametrize(
    "room",
    [
        pytest.param(1_000_000, id="all on the device"),
        pytest.param(30, id="most in a map", marks=pytest.mark.slow),
    ],
)
def test_balanced_offloading(sdnext: SDNext, room: int) -> None:
    """Parameters are replaced at each call, and with little memory placeholders; bits are the same throughout."""
    plain, one = sdnext.paint("a cat"), sdnext.paint(ONE)
    two = sdnext.paint("a cat <lora:wash:0.5>")
    sdnext.options.diffusers_offload_mode = "balanced"
    sdnext.module("sd_offload").room = room
    sdnext.reload()
    for _ in range(2):
        assert torch.equal(sdnext.paint("a cat"), plain)
        assert any(parameter.is_meta for parameter in sdnext.model.unet.parameters()) is (room < 100)
        assert torch.equal(sdnext.paint(ONE), one)
        assert torch.equal(sdnext.paint(ONE), one)
        assert torch.equal(sdnext.paint("a cat <lora:wash:0.5>"), two)
    varying = sdnext.paint("a cat <lora:ink:unet=0.7@0,0.7@1>")
    torch.testing.assert_close(varying, one, rtol=0, atol=1e-4)
    assert torch.equal(sdnext.paint("a cat"), plain)


@pytest.mark.slow
def test_sequential_offloading(sdnext: SDNext) -> None:
    plain, one = sdnext.paint("a cat"), sdnext.paint(ONE)
    sdnext.options.diffusers_offload_mode = "sequential"
    sdnext.reload()
    for _ in range(2):
        assert torch.equal(sdnext.paint("a cat"), plain)
        assert torch.equal(sdnext.paint(ONE), one)
        assert torch.equal(sdnext.paint(ONE), one)
        assert all(parameter.is_meta for parameter in sdnext.model.unet.parameters())
    assert torch.equal(sdnext.paint("a cat"), plain)


# --- what the program's own LoRA has left ---


def test_what_it_has_fused_is_named_with_the_click_that_helps(sdnext: SDNext) -> None:
    plain = dict(sdnext.weights())
    own = sdnext.module("lora.lora_common").extra_network_lora
    own.activate(None, [sdnext.module("extra_networks").ExtraNetworkParams(["old one"])])
    for _ in range(2):
        p = sdnext.job("a cat")
        assert 'SD.Next\'s own LoRA has fused "old one" into this checkpoint' in sdnext.notices(p)
        assert 'click "Reload model" in System' in sdnext.notices(p)
    sdnext.reload()
    assert sdnext.notices(sdnext.job("a cat")) == ""
    assert same(dict(sdnext.weights()), plain)


def test_what_it_has_fused_and_taken_out_again_is_said_too(sdnext: SDNext) -> None:
    """W + Δ − Δ in the weight's own dtype is not W."""
    own = sdnext.module("lora.lora_common").extra_network_lora
    own.activate(None, [sdnext.module("extra_networks").ExtraNetworkParams(["old one"])])
    own.activate(None, [])
    assert "fused LoRAs into this checkpoint, and out of it again" in sdnext.notices(sdnext.job("a cat"))


@pytest.mark.parametrize("fused", [False, True])
def test_adapters_of_peft_are_taken_off_and_named_where_they_were_fused(sdnext: SDNext, fused: bool) -> None:
    from peft import LoraConfig

    plain = dict(sdnext.weights())
    sdnext.model.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False), "old")
    sdnext.options.lora_fuse_diffusers = fused
    loaded = sdnext.module("lora.lora_diffusers").diffuser_loaded
    loaded.append("old one")
    assert ('fused "old one" into this checkpoint' in sdnext.notices(sdnext.job("a cat"))) is fused
    assert not loaded
    assert same(dict(sdnext.weights()), plain)


def test_copies_that_it_has_kept_are_put_back(sdnext: SDNext) -> None:
    plain = dict(sdnext.weights())
    sdnext.options.lora_fuse_native = False
    own = sdnext.module("lora.lora_common").extra_network_lora
    own.activate(None, [sdnext.module("extra_networks").ExtraNetworkParams(["old one"])])
    assert not same(dict(sdnext.weights()), plain)
    p = sdnext.job("a cat")
    assert sdnext.notices(p) == ""
    assert same(dict(sdnext.weights()), plain)
    assert sdnext.model.unet.conv_in.network_weights_backup is None


def test_the_report_is_of_the_checkpoint_that_is_loaded(sdnext: SDNext) -> None:
    sdnext.paint(ONE)
    _, found, notices = sdnext.owner.reported(ONE)
    assert (found.names, notices) == (("ink",), [])
    plain = tiny.pipeline().unet.state_dict()
    patched = unet_with(sdnext.loras / "ink.safetensors", 0.7)
    norms = {name: (weight - plain[name].double()).square().sum() for name, weight in patched.items()}
    unet = sum(float(found.blocks[block].norms[0]) ** 2 for block in found.blocks if block not in ("BASE", "CLIP"))
    assert unet == pytest.approx(float(sum(norms.values())), rel=1e-4)
    assert found.total.base is not None
