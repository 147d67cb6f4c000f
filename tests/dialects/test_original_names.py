"""Families whose original no converter of diffusers reads: pairs as a person reads them in the two models' code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import layouts
import pytest
import tiny_dit
import torch
from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_ltx2_lora_to_diffusers as convert_ltx_2
from torch import Tensor

from lora_runtime.dialects import normalise
from lora_runtime.pipelines import view
from lora_runtime.targets import Targets

HUNYUAN_DIT = {
    "blocks.1.attn1.Wqkv": ("blocks.1.attn1.to_q", "blocks.1.attn1.to_k", "blocks.1.attn1.to_v"),
    "blocks.1.attn1.out_proj": ("blocks.1.attn1.to_out.0",),
    "blocks.1.attn1.q_norm": ("blocks.1.attn1.norm_q",),
    "blocks.0.attn2.q_proj": ("blocks.0.attn2.to_q",),
    "blocks.0.attn2.kv_proj": ("blocks.0.attn2.to_k", "blocks.0.attn2.to_v"),
    "blocks.0.attn2.out_proj": ("blocks.0.attn2.to_out.0",),
    "blocks.0.mlp.fc1": ("blocks.0.ff.net.0.proj",),
    "blocks.0.mlp.fc2": ("blocks.0.ff.net.2",),
    "blocks.0.default_modulation.1": ("blocks.0.norm1.linear",),
    "blocks.3.skip_linear": ("blocks.3.skip_linear",),
    "x_embedder.proj": ("pos_embed.proj",),
    "t_embedder.mlp.2": ("time_extra_emb.timestep_embedder.linear_2",),
    "extra_embedder.0": ("time_extra_emb.extra_embedder.linear_1",),
    "pooler.c_proj": ("time_extra_emb.pooler.c_proj",),
    "mlp_t5.0": ("text_embedder.linear_1",),
    "final_layer.linear": ("proj_out",),
}
PIXART = {
    "blocks.1.attn.qkv": tuple(f"transformer_blocks.1.attn1.to_{side}" for side in "qkv"),
    "blocks.1.attn.proj": ("transformer_blocks.1.attn1.to_out.0",),
    "blocks.0.cross_attn.q_linear": ("transformer_blocks.0.attn2.to_q",),
    "blocks.0.cross_attn.kv_linear": ("transformer_blocks.0.attn2.to_k", "transformer_blocks.0.attn2.to_v"),
    "blocks.0.cross_attn.proj": ("transformer_blocks.0.attn2.to_out.0",),
    "blocks.0.mlp.fc1": ("transformer_blocks.0.ff.net.0.proj",),
    "blocks.0.mlp.fc2": ("transformer_blocks.0.ff.net.2",),
    "x_embedder.proj": ("pos_embed.proj",),
    "t_block.1": ("adaln_single.linear",),
    "t_embedder.mlp.0": ("adaln_single.emb.timestep_embedder.linear_1",),
    "csize_embedder.mlp.2": ("adaln_single.emb.resolution_embedder.linear_2",),
    "ar_embedder.mlp.0": ("adaln_single.emb.aspect_ratio_embedder.linear_1",),
    "y_embedder.y_proj.fc2": ("caption_projection.linear_2",),
    "final_layer.linear": ("proj_out",),
}
_REFINER = "context_embedder.token_refiner.refiner_blocks.1"
HUNYUAN_VIDEO_15 = {
    "double_blocks.1.img_attn_q": ("transformer_blocks.1.attn.to_q",),
    "double_blocks.1.txt_attn_v": ("transformer_blocks.1.attn.add_v_proj",),
    "double_blocks.0.txt_attn_qkv": tuple(f"transformer_blocks.0.attn.add_{side}_proj" for side in "qkv"),
    "double_blocks.0.img_mlp.fc1": ("transformer_blocks.0.ff.net.0.proj",),
    "double_blocks.0.img_mlp.2": ("transformer_blocks.0.ff.net.2",),  # ComfyUI's
    "double_blocks.0.img_mod.linear": ("transformer_blocks.0.norm1.linear",),
    "txt_in.individual_token_refiner.blocks.1.self_attn_qkv": tuple(f"{_REFINER}.attn.to_{side}" for side in "qkv"),
    "time_in.mlp.0": ("time_embed.timestep_embedder.linear_1",),
    "time_in.out_layer": ("time_embed.timestep_embedder.linear_2",),  # ComfyUI's
    "byt5_in.fc3": ("context_embedder_2.linear_3",),
    "vision_in.proj.1": ("image_embedder.linear_1",),
    "img_in.proj": ("x_embedder.proj",),
    "final_layer.linear": ("proj_out",),
}
HUNYUAN_IMAGE = {
    "single_blocks.1.linear1_q": ("single_transformer_blocks.1.attn.to_q",),
    "single_blocks.1.linear1_mlp": ("single_transformer_blocks.1.proj_mlp",),
    "single_blocks.0.linear1": (
        *(f"single_transformer_blocks.0.attn.to_{side}" for side in "qkv"),
        "single_transformer_blocks.0.proj_mlp",
    ),
    "single_blocks.1.linear2.fc": ("single_transformer_blocks.1.proj_out",),
    "single_blocks.0.linear2": ("single_transformer_blocks.0.proj_out",),
    "single_blocks.0.modulation.linear": ("single_transformer_blocks.0.norm.linear",),
    "double_blocks.0.img_attn_k": ("transformer_blocks.0.attn.to_k",),
    "time_in.mlp.2": ("time_guidance_embed.timestep_embedder.linear_2",),
}
CASES = {
    "hunyuan dit": ("HunyuanDiT2DModel", {"in_channels": 4, "patch_size": 2, "num_layers": 4}, HUNYUAN_DIT),
    "pixart": (
        "PixArtTransformer2DModel",
        {"num_layers": 2, "caption_channels": 4096, "use_additional_conditions": True},
        PIXART,
    ),
    "hunyuan video 1.5": ("HunyuanVideo15Transformer3DModel", {"num_layers": 2}, HUNYUAN_VIDEO_15),
    "hunyuan image": (
        "HunyuanImageTransformer2DModel",
        {"num_layers": 2, "num_single_layers": 2},
        HUNYUAN_IMAGE,
    ),
}
SWAPPED = ("final_layer.adaLN_modulation.1", "norm_out.linear")


def zeros(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in state.items()}


@pytest.mark.parametrize("prefix", ["diffusion_model.", "lora_unet_", "base_model.model."])
@pytest.mark.parametrize("name", CASES)
def test_the_names_that_a_person_reads(name: str, prefix: str, tmp_path: Path) -> None:
    title, config, pairs = CASES[name]
    ours = tiny_dit.narrow_state(tiny_dit.meta_model(title, **config))
    expected, tensors = zeros(ours), {}
    for original, pieces in pairs.items():
        stem = prefix + (normalise(original) if prefix.endswith("_") else original)
        tensors[f"{stem}.diff"] = torch.cat([ours[f"{piece}.weight"] for piece in pieces]).clone()
        for piece in pieces:
            expected[f"{piece}.weight"] += ours[f"{piece}.weight"]
    if name != "pixart":  # its last modulation is a table
        halves = ours[f"{SWAPPED[1]}.weight"].chunk(2)
        stem = prefix + (normalise(SWAPPED[0]) if prefix.endswith("_") else SWAPPED[0])
        tensors[f"{stem}.diff"] = torch.cat([halves[1], halves[0]])
        expected[f"{SWAPPED[1]}.weight"] += ours[f"{SWAPPED[1]}.weight"]
    found, (report,) = layouts.patched(layouts.tree(zeros(ours)), [layouts.written(tensors, tmp_path)])
    assert dict(report.unused) == {}
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def test_the_norms_that_hunyuan_dit_calls_by_each_others_names_are_left_out(tmp_path: Path) -> None:
    title, config, _ = CASES["hunyuan dit"]
    ours = tiny_dit.narrow_state(tiny_dit.meta_model(title, **config))
    targets = layouts.targets_of(layouts.tree(ours))
    assert targets.find("blocks.0.norm2") is None
    assert targets.reason("blocks.0.norm2").startswith("several modules share this name: transformer.blocks.0.norm")
    assert targets.find("blocks.0.norm1") == targets.find("blocks.0.norm1.norm")


def test_the_second_expert_of_wan_is_meant_by_its_own_name() -> None:
    model = layouts.tree(tiny_dit.narrow_state(tiny_dit.meta_model("WanTransformer3DModel", num_layers=1)))
    other = layouts.tree(dict(model.state_dict()))

    targets = Targets(view(tiny_dit.pipeline(transformer=model, transformer_2=other)))
    for stem, module in (
        ("diffusion_model.blocks.0.self_attn.q", model),
        ("lora_unet__blocks_0_self_attn_q", model),
        ("transformer_2.blocks.0.attn1.to_q", other),
        ("transformer_2.blocks.0.self_attn.q", other),
    ):
        target = targets.find(stem)
        assert target is not None, targets.reason(stem)
        assert target.module is module.get_submodule("blocks.0.attn1.to_q")


@pytest.mark.parametrize("prefix", ["text_conditioner.", "diffusion_model.llm_adapter.", "lora_unet_llm_adapter_"])
def test_the_adapter_of_animas_language_model_is_a_component(prefix: str) -> None:

    transformer = layouts.tree({"transformer_blocks.0.attn1.to_q.weight": torch.zeros(2, 2)})
    conditioner = layouts.tree({"blocks.0.cross_attn.q_proj.weight": torch.zeros(2, 2)})
    targets = Targets(view(tiny_dit.pipeline(transformer=transformer, text_conditioner=conditioner)))
    stem = prefix + ("blocks_0_cross_attn_q_proj" if prefix.endswith("_") else "blocks.0.cross_attn.q_proj")
    target = targets.find(stem)
    assert target is not None, targets.reason(stem)
    assert target.module is conditioner.get_submodule("blocks.0.cross_attn.q_proj")


def test_the_connectors_of_ltx_2_are_a_component() -> None:
    converted = convert_ltx_2(
        {"text_embedding_projection.aggregate_embed.lora_A.weight": 1}, "text_embedding_projection"
    )
    stem = next(iter(converted)).removesuffix(".lora_A.weight")
    connectors = layouts.tree({"text_proj_in.weight": torch.zeros(2, 2)})
    targets = Targets(view(tiny_dit.pipeline(transformer=torch.nn.Identity(), connectors=connectors)))
    expected = targets.find("text_embedding_projection.aggregate_embed")
    assert expected is not None
    assert expected.module is connectors.get_submodule("text_proj_in")
    assert targets.find(stem) == expected


@pytest.mark.parametrize(
    ("stem", "path"),
    [
        ("diffusion_model.blocks.1.modulation", "blocks.1.scale_shift_table"),
        ("diffusion_model.head.modulation", "scale_shift_table"),
    ],
)
def test_modulations_of_wan_have_diffusers_names(stem: str, path: str) -> None:
    config = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 12, "text_dim": 16, "ffn_dim": 32}
    model = tiny_dit.meta_model("WanTransformer3DModel", **config)
    target = Targets(view(tiny_dit.pipeline(transformer=model))).find(stem)
    assert target is not None
    assert (target.path, target.parameter) == (path, "scale_shift_table")
