"""Which block a module belongs to: against the tables of sd-webui-lora-block-weight and diffusers' own converter."""

from types import MappingProxyType
from typing import Any

import pytest
import tiny_ldm
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

from lora_runtime.blocks import FLUX, LAYOUTS, UNET, block_of, expanded, names_between


@pytest.mark.parametrize(
    ("component", "path", "block"),
    [
        ("text_encoder", "text_model.encoder.layers.0.self_attn.q_proj", "BASE"),
        ("text_encoder_2", "transformer.resblocks.3.mlp.c_fc", "BASE"),
        ("text_encoder_2", "encoder.block.0.layer.0.SelfAttention.q", "T5"),
        ("text_encoder_3", "shared", "T5"),
        ("unet", "conv_in", "IN00"),
        ("unet", "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q", "IN02"),
        ("unet", "down_blocks.0.downsamplers.0.conv", "IN03"),
        ("unet", "down_blocks.1.resnets.0.conv1", "IN04"),
        ("unet", "down_blocks.3.resnets.1.conv1", "IN11"),
        ("unet", "mid_block.attentions.0.proj_in", "M00"),
        ("unet", "up_blocks.0.upsamplers.0.conv", "OUT02"),
        ("unet", "up_blocks.1.attentions.2.proj_in", "OUT05"),
        ("unet", "up_blocks.3.resnets.2.conv1", "OUT11"),
        ("unet", "input_blocks.0.0", "IN00"),
        ("unet", "input_blocks.11.0.in_layers.2", "IN11"),
        ("unet", "middle_block.1.proj_in", "M00"),
        ("unet", "output_blocks.10.1.proj_in", "OUT10"),
        ("unet", "time_embedding.linear_1", None),
        ("unet", "time_embed.0", None),
        ("unet", "conv_out", None),
        ("unet", "out.2", None),
        ("unet", "down_blocks.4.resnets.0.conv1", None),
        ("unet", "down_blocks.0.motion_modules.0.proj_in", None),
        ("transformer", "transformer_blocks.7.attn.to_q", "D07"),
        ("transformer", "single_transformer_blocks.12.attn.to_q", "S12"),
        ("transformer", "x_embedder", "IN"),
        ("transformer", "context_embedder", "IN"),
        ("transformer", "time_text_embed.guidance_embedder.linear_1", "IN"),
        ("transformer", "norm_out.linear", "OUT"),
        ("transformer", "proj_out", "OUT"),
        ("transformer", "double_blocks.18.img_attn.qkv", "D18"),
        ("transformer", "single_blocks.37.linear1", "S37"),
        *(("transformer", f"{name}_in", "IN") for name in ("img", "txt", "time", "vector", "guidance")),
        ("transformer", "vector_in.in_layer", "IN"),
        ("transformer", "final_layer.linear", "OUT"),
        ("transformer", "single_transformer_blocks.12.proj_out", "S12"),
        ("transformer", "transformer_blocks.19.attn.to_q", None),
        ("transformer", "blocks.3.self_attn.q", None),
        ("transformer", "joint_blocks.3.x_block.attn.qkv", None),
    ],
)
def test_a_module_has_the_block_that_its_path_says(component: str, path: str, block: str | None) -> None:
    assert block_of(component, path) == block


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_a_module_has_the_same_block_by_its_ldm_name_and_by_diffusers_name(kind: str) -> None:
    config: dict[str, Any] = {
        "layers_per_block": 2,
        "class_embed_type": None,
        "num_class_embeds": None,
        "addition_embed_type": "text_time" if kind == "sdxl" else None,
    }
    prefix = "model.diffusion_model."
    state = tiny_ldm.state(tiny_ldm.unet(tiny_ldm.TINY[kind]), prefix)
    theirs = {id(tensor): key.removeprefix(prefix) for key, tensor in state.items()}
    converted = convert_ldm_unet_checkpoint(dict(state), config)
    assert len(converted) == len(state)
    blocks = set()
    for key, tensor in converted.items():
        block = block_of("unet", key)
        assert block == block_of("unet", theirs[id(tensor)]), key
        blocks.add(block)
    there = UNET[1:] if kind != "sdxl" else LAYOUTS[20][1:]
    assert blocks == {None, *there}


def test_a_layout_has_as_many_blocks_as_its_name_says() -> None:
    assert [len(blocks) for blocks in LAYOUTS.values()] == [12, 17, 20, 26, 61]
    assert all(set(blocks) <= {*UNET, *FLUX} for blocks in LAYOUTS.values())


def test_a_short_list_has_zeros_for_the_blocks_that_it_leaves_out() -> None:
    # By hand from the layout of 12: BASE IN04 IN05 IN07 IN08 M00 OUT00-OUT05.
    places = MappingProxyType(dict(expanded(12)))
    assert list(places) == list(UNET)
    assert [name for name, place in places.items() if place is not None] == [
        *("BASE", "IN04", "IN05", "IN07", "IN08", "M00"),
        *("OUT00", "OUT01", "OUT02", "OUT03", "OUT04", "OUT05"),
    ]
    assert [place for place in places.values() if place is not None] == list(range(12))


def test_a_range_goes_through_the_model_in_its_order() -> None:
    assert names_between("IN10", "OUT01") == ("IN10", "IN11", "M00", "OUT00", "OUT01")
    assert names_between("D17", "S01") == ("D17", "D18", "S00", "S01")
    assert names_between("OUT01", "IN10") == names_between("IN01", "D01") == names_between("IN01", "X") == ()
