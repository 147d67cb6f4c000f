"""LDM block names, judged by diffusers' converter of single-file checkpoints and by hand-written pairs."""

from __future__ import annotations

import pytest
import tiny
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

from lora_runtime.dialects import normalise
from lora_runtime.families.unet import UNET_NAMES

# A person's reading of the layout: 12 input blocks, of which 3, 6 and 9 are downsamplers (SD1); 9 of them in SDXL.
SD1 = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "down_blocks.0.resnets.0.conv1": "input_blocks.1.0.in_layers.2",
    "down_blocks.0.attentions.1.proj_in": "input_blocks.2.1.proj_in",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.3.0.op",
    "down_blocks.1.resnets.0.conv_shortcut": "input_blocks.4.0.skip_connection",
    "down_blocks.2.attentions.1.transformer_blocks.0.attn2.to_k": "input_blocks.8.1.transformer_blocks.0.attn2.to_k",
    "down_blocks.3.resnets.1.time_emb_proj": "input_blocks.11.0.emb_layers.1",
    "mid_block.resnets.0.norm1": "middle_block.0.in_layers.0",
    "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj": "middle_block.1.transformer_blocks.0.ff.net.0.proj",
    "mid_block.resnets.1.conv2": "middle_block.2.out_layers.3",
    "up_blocks.0.resnets.2.norm2": "output_blocks.2.0.out_layers.0",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.2.1.conv",
    "up_blocks.1.attentions.0.transformer_blocks.0.norm1": "output_blocks.3.1.transformer_blocks.0.norm1",
    "up_blocks.1.upsamplers.0.conv": "output_blocks.5.2.conv",
    "up_blocks.3.attentions.2.proj_out": "output_blocks.11.1.proj_out",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
SDXL = {
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.3.0.op",
    "down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q": "input_blocks.4.1.transformer_blocks.1.attn1.to_q",
    "down_blocks.2.attentions.1.transformer_blocks.9.ff.net.2": "input_blocks.8.1.transformer_blocks.9.ff.net.2",
    "mid_block.attentions.0.transformer_blocks.9.norm3": "middle_block.1.transformer_blocks.9.norm3",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.2.2.conv",
    "up_blocks.1.attentions.2.proj_in": "output_blocks.5.1.proj_in",
    "up_blocks.2.resnets.2.conv_shortcut": "output_blocks.8.0.skip_connection",
    "conv_out": "out.2",
}
# Counted by hand: 5 weights in each resnet, shortcuts, 3 around and 13 in each transformer block, samplers, the rest.
COUNTS = {
    "sd1": 22 * 5 + 14 + 16 * (3 + 13) + 6 + 5,
    "sd2": 22 * 5 + 14 + 16 * (3 + 13) + 6 + 5,
    "sdxl": 17 * 5 + 11 + 11 * 3 + 70 * 13 + 4 + 7,
}


def names_of(model: object) -> dict[str, str]:
    return dict(UNET_NAMES.spellings(tiny.weighted_paths(model)))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_every_module_of_the_real_unet_has_one_name(kind: tiny.Kind) -> None:
    unet = tiny.real_unet(kind)
    names = names_of(unet)
    assert set(names) == set(tiny.weighted_paths(unet))
    assert len({normalise(name) for name in names.values()}) == len(names) == COUNTS[kind]
    # In one file both sets of names may occur, under the same prefix.
    assert not {normalise(name) for name in names.values()} & {normalise(path) for path in names}


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_the_names_are_those_that_diffusers_converts_back(kind: tiny.Kind) -> None:
    names = names_of(tiny.real_unet(kind))
    checkpoint = {f"model.diffusion_model.{name}.weight": path for path, name in names.items()}
    config = {"class_embed_type": None, "num_class_embeds": None, "addition_embed_type": None} | tiny.REAL_UNETS[kind]
    if kind == "sdxl":  # the converter takes their biases along unasked
        checkpoint |= {f"model.diffusion_model.label_emb.0.{index}.bias": "" for index in (0, 2)}
    checkpoint = _with_biases(checkpoint)
    converted = convert_ldm_unet_checkpoint(checkpoint, config)
    weights = {key.removesuffix(".weight"): path for key, path in converted.items() if key.endswith(".weight")}
    assert weights == {path: path for path in names}


def _with_biases(checkpoint: dict[str, str]) -> dict[str, str]:
    return checkpoint | {key.replace(".weight", ".bias"): path for key, path in checkpoint.items()}


@pytest.mark.parametrize(("kind", "pairs"), [("sd1", SD1), ("sdxl", SDXL)])
def test_the_names_are_those_that_a_person_reads(kind: tiny.Kind, pairs: dict[str, str]) -> None:
    names = names_of(tiny.real_unet(kind))
    assert {path: names[path] for path in pairs} == pairs


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_the_tiny_models_have_the_blocks_of_the_real_ones(kind: tiny.Kind) -> None:
    def block_names(model: object) -> set[str]:
        return {name for name in names_of(model).values() if ".transformer_blocks." not in name}

    tiny_names, real_names = block_names(tiny.unet(kind)), block_names(tiny.real_unet(kind))
    # Only where a tiny block is no wider than the one before does it lack the shortcut.
    assert {name for name in tiny_names ^ real_names if "skip_connection" not in name} == set()


def test_any_number_of_layers_is_walked() -> None:
    from diffusers import UNet2DConditionModel

    one_layer = UNet2DConditionModel(
        block_out_channels=(4, 8),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=2,
        attention_head_dim=2,
        cross_attention_dim=8,
    )
    names = names_of(one_layer)
    assert names["down_blocks.0.attentions.0.proj_in"] == "input_blocks.1.1.proj_in"
    assert names["down_blocks.0.downsamplers.0.conv"] == "input_blocks.2.0.op"
    assert names["down_blocks.1.resnets.0.conv1"] == "input_blocks.3.0.in_layers.2"
    assert names["up_blocks.0.upsamplers.0.conv"] == "output_blocks.1.1.conv"
    assert names["up_blocks.1.attentions.1.proj_out"] == "output_blocks.3.1.proj_out"


def test_a_middle_without_attention_has_no_gap() -> None:
    names = dict(UNET_NAMES.spellings(["mid_block.resnets.0.conv1", "mid_block.resnets.1.conv1"]))
    assert names["mid_block.resnets.1.conv1"] == "middle_block.1.in_layers.2"


def test_other_models_have_no_such_names() -> None:
    assert dict(UNET_NAMES.spellings(["encoder.layers.0.mlp.fc1", "conv_in", "conv_out"])) == {}


def test_parts_that_the_original_lacks_have_no_such_names() -> None:
    paths = ["down_blocks.0.resnets.0.conv1", "down_blocks.0.motion_modules.0.proj_in", "encoder_hid_proj"]
    paths += ["down_blocks.0.downsamplers.0.conv", "down_blocks.0.downsamplers.1.conv"]
    assert set(dict(UNET_NAMES.spellings(paths))) == {
        "down_blocks.0.resnets.0.conv1",
        "down_blocks.0.downsamplers.0.conv",
    }
