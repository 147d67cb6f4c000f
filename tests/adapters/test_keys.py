"""Which part of a key names the module and which the tensor, as trainers write them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import lora_runtime
from lora_runtime.adapters import ALGORITHMS, Algorithm, Pending, companion, split_key
from lora_runtime.adapters.pending import PENDING
from lora_runtime.header import Header, TensorInfo
from lora_runtime.key_endings import ENDINGS, KNOWN_ONLY
from lora_runtime.metadata import algorithms

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
    ("to_q_lora.up.weight", "to_q", "up"),
    ("x.lora_A.b1.weight", "x", "down"),  # named as a tensor of GLoRA is
    ("lora_unet_x.scale", "lora_unet_x", "scale"),
    ("unet.x.lora_B.bias", "unet.x", "bias"),
    ("unet.x.lora_B.default.bias", "unet.x", "bias"),
    ("lora_unet_x.lora_up.bias", "lora_unet_x", "bias"),
    ("lora_unet_x.bias_indices", "lora_unet_x", "bias_indices"),
    # As one trainer or another writes them.
    ("x.to_q.lora_down.default.weight", "x.to_q", "down"),
    ("x.to_q.lora_A.my.v1.weight", "x.to_q", "down"),
    ("x.to_q.lora_B.my.v1.weight", "x.to_q", "up"),
    ("x.to_q.lora_layer.up.weight", "x.to_q", "up"),
    ("x.to_q.lora_a.weight", "x.to_q", "down"),
    ("x.to_q.lora_b.weight", "x.to_q", "up"),
    ("x.to_q.lora.A.weight", "x.to_q", "down"),
    ("x.to_q.lora_up", "x.to_q", "up"),
    ("lora_unet_x.hada_w1_a", "lora_unet_x", "w1_a"),
    ("lora_unet_x.hada_t2", "lora_unet_x", "t2"),
    ("lora_unet_x.lokr_w1", "lora_unet_x", "w1"),
    ("lora_unet_x.lokr_w2_b", "lora_unet_x", "w2_b"),
    ("lora_unet_x.lora_up2.weight", "lora_unet_x", "up2"),
    ("lora_unet_x.on_input", "lora_unet_x", "on_input"),
    ("lora_unet_x.bm.weight", "lora_unet_x", "bm"),
    ("oft_unet_x.oft_blocks", "oft_unet_x", "blocks"),
    ("lora_unet_x.oft_diag", "lora_unet_x", "diag"),
    ("lora_unet_x.rescale", "lora_unet_x", "rescale"),
    ("lora_unet_x.diff", "lora_unet_x", "weight"),
    ("lora_unet_x.diff_b", "lora_unet_x", "bias"),
    ("lora_unet_x.w_norm", "lora_unet_x", "weight"),
    ("lora_unet_x.b_norm", "lora_unet_x", "bias"),
    ("lora_unet_x.dora_scale", "lora_unet_x", "scale"),
    ("unet.x.lora_magnitude_vector", "unet.x", "vector"),
    ("unet.x.lora_magnitude_vector.weight", "unet.x", "vector.weight"),
    ("unet.x.lora_magnitude_vector.default.weight", "unet.x", "vector.weight"),
    ("diffusion_model.x.magnitude", "diffusion_model.x", "magnitude"),
    ("oft_unet_x_img_attn_qkv.oft_blocks.2", "oft_unet_x_img_attn_qkv", "blocks.2"),
    ("base_model.model.wte.lora_embedding_A", "base_model.model.wte", "A"),
    ("base_model.model.wte.lora_embedding_B.default", "base_model.model.wte", "B"),
    ("img_in.set_weight", "img_in", "weight"),
    ("img_in.reshape_weight", "img_in", "reshape_weight"),
    # What of the module's name is in the ending stays in the stem.
    ("diffusion_model.blocks.0.diff_m", "diffusion_model.blocks.0.modulation", "weight"),
    ("lora_unet_blocks_0.diff_m", "lora_unet_blocks_0.modulation", "weight"),
    ("double_blocks.0.processor.qkv_lora1.up.weight", "double_blocks.0.processor.qkv_lora1", "up"),
    ("double_blocks.0.processor.proj_lora2.down.weight", "double_blocks.0.processor.proj_lora2", "down"),
    ("single_blocks.0.processor.qkv_lora.up.weight", "single_blocks.0.processor.qkv_lora", "up"),
    ("single_blocks.0.processor.proj_lora.down.weight", "single_blocks.0.processor.proj_lora", "down"),
    ("attn1.processor.add_k_proj_lora.down.weight", "attn1.processor.add_k_proj", "down"),
    ("single_blocks.1.norm.key_norm.scale", "single_blocks.1.norm.key_norm", "weight"),
    ("double_blocks.1.img_attn.norm.query_norm.scale", "double_blocks.1.img_attn.norm.query_norm", "weight"),
]


@pytest.mark.parametrize(("key", "stem", "role"), KEYS)
def test_a_key_is_a_stem_and_a_role(key: str, stem: str, role: str) -> None:
    parts = split_key(key)
    assert parts is not None
    assert (parts.stem, parts.role) == (stem, role)
    shared = role in ("alpha", "reshape_weight") or key == "lora_unet_x.scale"
    assert parts.owner is None if shared else isinstance(parts.owner, Algorithm)


@pytest.mark.parametrize(
    ("key", "algorithm"),
    [
        ("unet.x.oft_r", "OFT of PEFT before 0.16"),
        ("unet.x.psoft_R.weight", "PSOFT"),
        ("lora_unet_x.lambda_layer", "T-LoRA"),
        ("lora_unet_x.lokr_t1", "LoKr with a core on its first factor"),
        ("unet:0:up", "cloneofsimo's LoRA"),
        ("text_encoder:11:down", "cloneofsimo's LoRA"),
    ],
)
def test_an_algorithm_without_support_is_known_by_name(key: str, algorithm: str) -> None:
    parts = split_key(key)
    assert parts is not None
    assert isinstance(parts.owner, Pending)
    assert parts.owner.algorithm == algorithm


def test_what_is_known_is_never_pending_too() -> None:
    known = {ending for algorithm in ALGORITHMS for ending in (*algorithm.endings, *algorithm.companions)}
    assert not known & set(PENDING)


@pytest.mark.parametrize("key", ["lora_unet_x.weight", "model.diffusion_model.out.2.weight"])
def test_a_companion_is_what_counts_only_beside_others(key: str) -> None:
    assert split_key(key) is None
    parts = companion(key)
    assert parts is not None
    assert (parts.stem, parts.role) == (key.removesuffix(".weight"), "weight")


@pytest.mark.parametrize("key", ["", "x", "x.bias", "weight"])
def test_few_endings_are_companions(key: str) -> None:
    assert companion(key) is None


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
        "unet:x:up",
        "x_lora3.up.weight",
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
    assert len(endings) == len(set(endings))


# Said once more where an algorithm looks at the ending itself.
SAID_AGAIN = {".diff_m", ".key_norm.scale", ".query_norm.scale", ".lora_up"}


def test_endings_are_listed_once() -> None:
    assert {algorithm.name for algorithm in ALGORITHMS} == set(ENDINGS)
    assert all(algorithm.endings is ENDINGS[algorithm.name] for algorithm in ALGORITHMS)
    endings = [ending for group in (*ENDINGS.values(), *KNOWN_ONLY.values()) for ending in group]
    assert len(endings) == len(set(endings))
    package = Path(lora_runtime.__file__).parent
    for path in package.rglob("*.py"):
        if path.name == "key_endings.py":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        said = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
        again = {text for text in said if text in endings or (f".{text}" in endings and text.count("_") > 1)}
        assert again <= SAID_AGAIN, path


@pytest.mark.parametrize(
    ("ending", "name"), [(ending, name) for name, group in ENDINGS.items() for ending in group], ids=str
)
def test_what_a_file_is_called_is_told_by_the_same_endings(ending: str, name: str) -> None:
    """The description and the adapters must not know different algorithms."""
    parts = split_key(f"blocks.0.to_q{ending}")
    assert parts is not None
    assert isinstance(parts.owner, Algorithm)
    assert parts.owner.name == name
    found, _ = algorithms(Header(Path("x"), 0, {}, {f"blocks.0.to_q{ending}": TensorInfo("F32", (2, 2))}))
    once = parts.role in parts.owner.of_file
    assert len(found) == (0 if once else 1)
