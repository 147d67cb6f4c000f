"""Which part of a key names the module and which the tensor, as trainers write them."""

from __future__ import annotations

import pytest

from lora_runtime.adapters import ALGORITHMS, Algorithm, Pending, split_key

# Written from the formats' descriptions: (key, stem, role).
KEYS = [
    ("lora_unet_down_blocks_0_proj_in.lora_up.weight", "lora_unet_down_blocks_0_proj_in", "up"),
    ("lora_unet_down_blocks_0_proj_in.lora_down.weight", "lora_unet_down_blocks_0_proj_in", "down"),
    ("lora_unet_down_blocks_0_proj_in.lora_mid.weight", "lora_unet_down_blocks_0_proj_in", "mid"),
    ("lora_unet_down_blocks_0_proj_in.alpha", "lora_unet_down_blocks_0_proj_in", "alpha"),
    ("unet.mid_block.attn1.processor.to_q_lora.up.weight", "unet.mid_block.attn1.processor.to_q", "up"),
    ("unet.mid_block.attn1.processor.to_out_lora.down.weight", "unet.mid_block.attn1.processor.to_out", "down"),
    ("unet.mid_block.attn1.to_q.lora.up.weight", "unet.mid_block.attn1.to_q", "up"),
    ("unet.mid_block.attn1.to_q.lora.down.weight", "unet.mid_block.attn1.to_q", "down"),
    ("unet.mid_block.attn1.to_q.lora_B.weight", "unet.mid_block.attn1.to_q", "up"),
    ("unet.mid_block.attn1.to_q.lora_A.weight", "unet.mid_block.attn1.to_q", "down"),
    ("base_model.model.to_q.lora_A.default.weight", "base_model.model.to_q", "down"),
    ("base_model.model.to_q.lora_B.my_style-2.weight", "base_model.model.to_q", "up"),
    ("blocks.0.attn.qkv.lora_B", "blocks.0.attn.qkv", "up"),
    ("blocks.0.attn.qkv.lora_A", "blocks.0.attn.qkv", "down"),
    ("text_encoder.layers.0.q_proj.lora_linear_layer.up.weight", "text_encoder.layers.0.q_proj", "up"),
    ("text_encoder.layers.0.q_proj.lora_linear_layer.down.weight", "text_encoder.layers.0.q_proj", "down"),
]


@pytest.mark.parametrize(("key", "stem", "role"), KEYS)
def test_a_key_is_a_stem_and_a_role(key: str, stem: str, role: str) -> None:
    parts = split_key(key)
    assert parts is not None
    assert (parts.stem, parts.role) == (stem, role)
    assert parts.owner is None if role == "alpha" else isinstance(parts.owner, Algorithm)


@pytest.mark.parametrize(
    ("key", "algorithm", "on_weight"),
    [
        ("lora_unet_x.dora_scale", "DoRA", True),
        ("unet.x.lora_magnitude_vector", "DoRA", True),
        ("unet.x.lora_magnitude_vector.weight", "DoRA", True),
        ("unet.x.lora_magnitude_vector.default.weight", "DoRA", True),
        ("lora_unet_x.hada_w1_a", "LoHa", True),
        ("lora_unet_x.lokr_w2_b", "LoKr", True),
        ("lora_unet_x.on_input", "IA³", True),
        ("oft_unet_x.oft_blocks", "OFT", True),
        ("lora_unet_x.diff", "full difference", True),
        ("lora_unet_x.diff_b", "difference of a bias", False),
        ("unet.x.lora_B.bias", "LoRA with a bias", False),
        ("x.lora_embedding_A.default", "LoRA of an embedding", True),
    ],
)
def test_an_algorithm_without_support_is_known_by_name(key: str, algorithm: str, on_weight: bool) -> None:
    parts = split_key(key)
    assert parts is not None
    assert parts.owner == Pending(algorithm, on_weight)


@pytest.mark.parametrize(
    "key",
    [
        "",
        "weight",
        "lora_up",
        "lora_unet_x.weight",
        "model.diffusion_model.out.2.bias",
        "x.lora_up.weight.y",
        "x.lora_A.default.y",
    ],
)
def test_an_unknown_ending_belongs_to_nobody(key: str) -> None:
    assert split_key(key) is None


def test_two_adapters_of_one_module_stay_apart() -> None:
    spellings = {
        split_key(key).spelling  # type: ignore[union-attr]
        for key in ("x.lora_A.default.weight", "x.lora_A.second.weight", "x.lora_A.weight", "x.lora_down.weight")
    }
    assert len(spellings) == 4


def test_no_ending_is_owned_twice() -> None:
    endings = [ending for algorithm in ALGORITHMS for ending in algorithm.endings]
    assert len(endings) == len(set(endings)) == 13
