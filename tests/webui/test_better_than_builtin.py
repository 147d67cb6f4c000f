"""Where the built-in extension is wrong, and a test says what is right: in the real program."""

from __future__ import annotations

import contextlib
from pathlib import Path

import loras
import program
import pytest
import torch
from safetensors.torch import load_file

WITH = "a cat <lora:sd1:0.7>"


@pytest.fixture(autouse=True)
def _defaults(run: program.WebUI) -> None:
    run.set_options(sd_model_checkpoint="sd1-a.safetensors")


def test_the_order_of_tags_does_not_change_a_bit(run: program.WebUI) -> None:
    """The built-in rounds after each LoRA."""
    run.txt2img("a cat <lora:sd1:0.5> <lora:second:0.3>")
    first = run.digest()
    run.txt2img("a cat <lora:second:0.3> <lora:sd1:0.5>")
    assert run.digest() == first


def test_the_same_lora_twice_adds_up(run: program.WebUI) -> None:
    """The built-in takes the last strength, twice."""
    once = run.txt2img("a cat <lora:sd1:0.75>")
    assert run.txt2img("a cat <lora:sd1:0.5> <lora:sd1:0.25>").difference(once) == 0


@pytest.mark.parametrize("bad", ["nan", "inf", "1=2=3", "", "1,0"])
def test_a_number_that_is_none_costs_only_its_tag(run: program.WebUI, bad: str) -> None:
    """The built-in drops all LoRAs, or puts NaN into the weights."""
    good = run.txt2img(WITH)
    picture = run.txt2img(f"{WITH} <lora:second:{bad}>")
    assert picture.difference(good) == 0
    assert len(picture.notices) == 1


def test_extra_networks_switched_off_after_a_lora_leave_nothing_behind(run: program.WebUI) -> None:
    """With the built-in, the LoRA of the picture before leaks into this one."""
    plain = run.txt2img("a cat")
    run.txt2img(WITH)
    run.post("/probe/fail", where="disable_extra_networks")
    # The program leaves the tag in the prompt then, so the text says nothing of it.
    assert run.txt2img("a cat").difference(plain) == 0


def test_the_last_layers_of_a_text_encoder_are_patched_whether_they_run_or_not(run: program.WebUI) -> None:
    """The built-in patches a layer when it runs, so a later clip skip finds others."""
    run.set_options(sd_model_checkpoint="sd2.safetensors")
    run.txt2img("a cat")
    name = "cond_stage_model.wrapped.model.transformer.resblocks.3.attn.in_proj_weight"
    before = run.weights()[name]
    run.txt2img("a cat <lora:sd2:1>")
    assert not torch.equal(run.weights()[name], before)


def test_sd3_files_with_fused_attention_and_both_clip_encoders(run: program.WebUI, data: Path) -> None:
    """The built-in knows only diffusers' names there."""
    run.write_sd3()
    run.set_options(sd_model_checkpoint="sd3.safetensors")
    run.txt2img("a cat")
    whole, digest = run.weights(), run.digest()
    run.txt2img("a cat <lora:sd3-native:0.5> <lora:sd3:0.25>")
    patched = run.weights()
    native, split = (load_file(data / "models" / "Lora" / f"{name}.safetensors") for name in ("sd3-native", "sd3"))
    changed = {name for name in whole if not torch.equal(whole[name], patched[name])}
    assert {part for name in changed for part in ("unet", "clip_l", "clip_g") if part in name} == {
        "unet",
        "clip_l",
        "clip_g",
    }
    for block, stem in (("x", "x_block"), ("context", "context_block")):
        name = f"unet.joint_blocks.0.{stem}.attn.qkv.weight"
        lora = f"lora_unet_joint_blocks_0_{stem}_attn_qkv"
        expected = whole[name].double()
        expected += 0.5 * native[f"{lora}.lora_up.weight"].double() @ native[f"{lora}.lora_down.weight"].double()
        if block == "x":
            parts = [f"transformer.transformer_blocks.0.attn.to_{part}" for part in "qkv"]
            deltas = [split[f"{p}.lora_B.weight"].double() @ split[f"{p}.lora_A.weight"].double() for p in parts]
            expected += 0.25 * torch.cat(deltas)
        torch.testing.assert_close(patched[name], expected.float(), rtol=1e-6, atol=1e-6)
    run.txt2img("a cat")
    assert run.digest() == digest


def test_fp8_with_fp16_beside_it_keeps_all_loras(webui: Path, data: Path) -> None:
    """The built-in starts from the fp16 weight at each LoRA, so only the last is left."""
    options = {"fp8_storage": "Enable", "cache_fp16_weight": True}
    files = data / "models" / "Lora"
    checkpoint = load_file(data / "models" / "Stable-diffusion" / "sd1-a.safetensors")
    first, second = load_file(files / "sd1.safetensors"), load_file(files / "style" / "second.safetensors")
    stem = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    inner = "middle_block.1.transformer_blocks.0.attn1.to_q.weight"
    with program.WebUI(webui, data, options=options) as run:
        run.txt2img("a cat <lora:sd1:0.5> <lora:second:1>")
        patched = run.weights()[f"unet.{inner}"]
    weight = checkpoint[f"model.diffusion_model.{inner}"].half().double()
    for tensors, strength in ((first, 0.5), (second, 1.0)):
        up, down = tensors[f"{stem}.lora_up.weight"].double(), tensors[f"{stem}.lora_down.weight"].double()
        weight = weight + strength * (up @ down)
    assert torch.equal(patched.view(torch.uint8), weight.float().to(torch.float8_e4m3fn).view(torch.uint8))


def test_a_picture_may_be_asked_for_while_the_checkpoint_is_still_being_loaded(webui: Path, data: Path) -> None:
    with program.WebUI(webui, data, wait_for_checkpoint=False) as run:
        first = run.txt2img(WITH)
        run.txt2img("a cat")
        assert run.txt2img(WITH).difference(first) == 0


def test_several_folders_can_be_named(webui: Path, data: Path, tmp_path: Path) -> None:
    checkpoint = data / "models" / "Stable-diffusion" / "sd1-a.safetensors"
    names = {"--lora-dir": ["here", "there"], "--lyco-dir-backcompat": ["old"]}
    arguments = []
    for option, folders in names.items():
        for index, folder in enumerate(folders):
            loras.write(tmp_path / folder / f"{folder}-file.safetensors", checkpoint, seed=index, only="attn1")
            arguments += [option, str(tmp_path / folder)]
    with program.WebUI(webui, data, arguments=(*program.FULL, *arguments)) as run:
        assert {lora["name"] for lora in run.get("/sdapi/v1/loras")} == {"here-file", "there-file", "old-file"}
        assert not run.txt2img("a cat <lora:here-file:1> <lora:there-file:1> <lora:old-file:1>").notices


def test_without_a_page_only_the_api(webui: Path, data: Path) -> None:
    with program.WebUI(webui, data, arguments=(*program.FULL, "--nowebui")) as run:
        plain = run.txt2img("a cat")
        assert run.txt2img(WITH).difference(plain) > 0
        assert run.txt2img("a cat").difference(plain) == 0
        assert run.post("/lora-runtime/explain", prompt=WITH)["tags"][0]["name"] == "sd1"


def test_an_extension_that_cannot_start_leaves_the_builtin_to_work(webui: Path, data: Path, tmp_path: Path) -> None:
    """The shim alone, without the rest of the folder."""
    broken = tmp_path / "broken"
    (broken / "scripts").mkdir(parents=True)
    shim = program.REPOSITORY / "scripts" / "lora_runtime_webui.py"
    (broken / "scripts" / shim.name).write_text(shim.read_text(encoding="utf-8"), encoding="utf-8")
    with program.WebUI(webui, data, repository=broken) as run:
        said = [line for line in run.log.splitlines() if "[lora-runtime]" in line]
        assert len(said) == 1
        assert "the built-in Lora extension stays" in said[0]
        plain = run.txt2img("a cat")
        assert run.txt2img(WITH).difference(plain) > 0
        with contextlib.suppress(OSError):
            run.get("/lora-runtime/explain")
