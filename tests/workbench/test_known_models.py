"""`convert` without a model: the names that files of the family have, there and back bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from workbench.files import factors, written

from lora_runtime.errors import LoraFileError
from lora_runtime.workbench import convert

# By hand, of each family: a module as kohya's trainer calls it, with the weight's shape, and in the other spellings.
_IN = "down_blocks.1.attentions.0.transformer_blocks.0"
SD1 = {
    "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k": (
        (640, 768),
        f"unet.{_IN}.attn2.to_k",
        "diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k",
    ),
    "lora_unet_mid_block_resnets_0_conv1": (
        (1280, 1280, 3, 3),
        "unet.mid_block.resnets.0.conv1",
        "diffusion_model.middle_block.0.in_layers.2",
    ),
}
SD2 = {
    "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k": (
        (640, 1024),
        f"unet.{_IN}.attn2.to_k",
        "diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k",
    ),
}
SDXL = {
    "lora_unet_input_blocks_4_1_transformer_blocks_1_attn2_to_v": (
        (640, 2048),
        "unet.down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_v",
        "diffusion_model.input_blocks.4.1.transformer_blocks.1.attn2.to_v",
    ),
    "lora_unet_output_blocks_2_2_conv": (
        (1280, 1280, 3, 3),
        "unet.up_blocks.0.upsamplers.0.conv",
        "diffusion_model.output_blocks.2.2.conv",
    ),
}
FLUX = {
    "lora_unet_double_blocks_18_img_mlp_0": (
        (12288, 3072),
        "transformer.transformer_blocks.18.ff.net.0.proj",
        "diffusion_model.double_blocks.18.img_mlp.0",
    ),
    "lora_unet_single_blocks_37_linear2": (
        (3072, 15360),
        "transformer.single_transformer_blocks.37.proj_out",
        "diffusion_model.single_blocks.37.linear2",
    ),
}
FAMILIES = {"sd_v1": SD1, "sd_v2": SD2, "sdxl_base_v1-0": SDXL, "flux1": FLUX}


def kohyas(path: Path, version: str, more: dict[str, torch.Tensor] | None = None) -> Path:
    tensors = dict(more or {})
    for seed, (stem, (shape, _, _)) in enumerate(FAMILIES[version].items()):
        tensors |= {k: v.half() for k, v in factors(stem, 2, alpha=2.0, seed=seed, shape=torch.Size(shape)).items()}
    return written(path, tensors, {"ss_base_model_version": version, "ss_v2": json.dumps(version == "sd_v2").title()})


def same(path: Path, other: Path) -> bool:
    one, two = load_file(path), load_file(other)
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def stems(path: Path) -> set[str]:
    return {key.partition(".lora_")[0] for key in load_file(path) if not key.endswith(".alpha")}


@pytest.mark.quick(2)
@pytest.mark.parametrize("version", FAMILIES)
def test_every_spelling_is_that_of_the_familys_files_and_leads_back(version: str, tmp_path: Path) -> None:
    path, families = kohyas(tmp_path / "a.safetensors", version), FAMILIES[version]
    for number, (to, place) in enumerate((("diffusers", 1), ("comfy", 2), ("kohya", 0))):
        there = convert(path, tmp_path / f"{number}.safetensors", to=to)  # type: ignore[arg-type]
        assert stems(there.path) == ({each[place] for each in families.values()} if place else {*families})  # type: ignore[misc]
        back = convert(there.path, tmp_path / f"{number}b.safetensors", to="kohya")
        assert same(path, back.path)
    bare = convert(path, tmp_path / "bare.safetensors", to="original")
    assert stems(bare.path) == {comfy.removeprefix("diffusion_model.") for _, _, comfy in families.values()}


def test_q_k_and_v_of_flux_are_put_together_for_kohya_and_cut_apart_for_diffusers(tmp_path: Path) -> None:
    fused = factors("lora_unet_double_blocks_3_txt_attn_qkv", 2, shape=torch.Size((9216, 3072)))
    path = kohyas(tmp_path / "a.safetensors", "flux1", fused)
    there = convert(path, tmp_path / "b.safetensors", to="diffusers")
    names = {f"transformer.transformer_blocks.3.attn.add_{name}_proj" for name in "qkv"}
    assert names <= stems(there.path)
    back = convert(there.path, tmp_path / "c.safetensors", to="comfy")
    assert "diffusion_model.double_blocks.3.txt_attn.qkv" in stems(back.path)


def test_text_encoders_come_along(tmp_path: Path) -> None:
    stem = "lora_te2_text_model_encoder_layers_31_mlp_fc1"
    path = kohyas(tmp_path / "a.safetensors", "sdxl_base_v1-0", factors(stem, 2, shape=torch.Size((5120, 1280))))
    there = convert(path, tmp_path / "b.safetensors", to="diffusers")
    assert "text_encoder_2.text_model.encoder.layers.31.mlp.fc1" in {
        each.replace("text_encoder_2.encoder", "text_encoder_2.text_model.encoder") for each in stems(there.path)
    }
    back = convert(there.path, tmp_path / "c.safetensors", to="kohya")
    assert stem in stems(back.path)


def test_a_family_that_is_not_known_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "a.safetensors", factors("lora_unet_x", shape=torch.Size((4, 4))))
    with pytest.raises(LoraFileError, match="its model is unknown, and names are known of SD1, SD2, SDXL, Flux alone"):
        convert(path, tmp_path / "x.safetensors", to="diffusers")


def test_without_the_libraries_the_model_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    path = kohyas(tmp_path / "a.safetensors", "flux1")
    with pytest.raises(LoraFileError, match="install them, or give the model, --model DIR or FILE"):
        convert(path, tmp_path / "x.safetensors", to="diffusers")
