"""Models on disk: their weights by LoRA files' names, from headers alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
import tiny_ldm
import torch
from adapters.judge import rand
from workbench.files import written

from lora_runtime.errors import LoraFileError
from lora_runtime.workbench.base_model import open_model, weights_of


def test_a_folder_of_diffusers_has_the_weights_of_its_components(tmp_path: Path) -> None:
    pipe = tiny.pipeline()
    pipe.save_pretrained(tmp_path / "model")
    model = open_model(tmp_path / "model")
    weight = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.weight
    for name in (
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q",
        "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
        "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q",
    ):
        assert model.place(name) == "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
        assert model.shape(name) == weight.shape
        read = model.read(name)
        assert read is not None
        assert torch.equal(read, weight)
    assert model.read("lora_te_text_model_encoder_layers_0_mlp_fc1", "bias") is not None
    assert (model.place("lora_unet_x"), model.shape("lora_unet_x"), model.read("lora_unet_x")) == (None, None, None)
    assert model.reason("lora_unet_x") == "no module of that name in unet"


def test_a_checkpoint_in_original_names_is_seen_as_the_live_model_is(tmp_path: Path) -> None:
    state = tiny_ldm.state(tiny_ldm.model("sdxl", hijacked=False))
    model = open_model(written(tmp_path / "a.safetensors", state))
    assert list(model.view.components) == ["unet", "text_encoder", "text_encoder_2"]
    # q of OpenCLIP is the first third of its fused weight.
    fused = next(key for key in state if key.endswith("resblocks.0.attn.in_proj_weight"))
    read = model.read("lora_te2_text_model_encoder_layers_0_self_attn_q_proj")
    assert read is not None
    assert torch.equal(read, state[fused][: state[fused].shape[0] // 3])
    bias = model.read("lora_te2_text_model_encoder_layers_0_self_attn_q_proj", "bias")
    assert bias is not None
    assert bias.shape == (read.shape[0],)


def test_a_fused_weight_of_a_file_is_several_of_the_model(tmp_path: Path) -> None:
    from diffusers import FluxTransformer2DModel

    small = {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 4, "num_attention_heads": 2}
    flux = FluxTransformer2DModel(**small, joint_attention_dim=6, pooled_projection_dim=6, axes_dims_rope=(2, 2))
    flux.save_pretrained(tmp_path / "transformer")
    model = open_model(tmp_path / "transformer")
    attention = flux.transformer_blocks[0].attn
    weights = [layer.weight for layer in (attention.to_q, attention.to_k, attention.to_v)]
    stem = "lora_unet_double_blocks_0_img_attn_qkv"
    assert model.shape(stem) == (24, 8)
    read = model.read(stem)
    assert read is not None
    assert torch.equal(read, torch.cat(weights))


def test_of_several_sets_of_weights_the_plain_one_or_the_index_counts(tmp_path: Path) -> None:
    one, two = (written(tmp_path / f"model-0000{n}-of-00002.safetensors", {f"{n}.weight": rand(2, 2)}) for n in (1, 2))
    with pytest.raises(LoraFileError, match=r"not one set of weights \(.safetensors\), but model-00001-of-00002.saf"):
        weights_of(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"1.weight": one.name, "2.weight": two.name}}), encoding="utf-8")
    assert weights_of(tmp_path) == [one, two]
    model = open_model(tmp_path)
    assert model.shape("2") == (2, 2)
    index.write_text("[]", encoding="utf-8")
    with pytest.raises(LoraFileError, match="is no index of safetensors files"):
        weights_of(tmp_path)
    plain = written(tmp_path / "model.safetensors", {"a.weight": rand(2, 2)})
    assert weights_of(tmp_path) == [plain]


def test_what_is_no_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(LoraFileError, match="no such file or folder"):
        open_model(tmp_path / "none")
    with pytest.raises(LoraFileError, match=r"not one set of weights \(.safetensors\), but none"):
        open_model(tmp_path)
    (tmp_path / "model_index.json").write_text("{}", encoding="utf-8")
    with pytest.raises(LoraFileError, match="no component in it has its weights as safetensors"):
        open_model(tmp_path)
    odd = written(tmp_path / "odd.safetensors", {"a": rand(2), "a.weight": rand(2, 2)})
    with pytest.raises(LoraFileError, match="lies inside of a tensor of that name"):
        open_model(odd)
