"""The other families: prefixes, and the names of CLIP layouts and attention processors, as literal pairs."""

from __future__ import annotations

import pytest

from lora_runtime.dialects import DIALECTS, WHOLE, component_of, normalise, prefixes, spellings
from lora_runtime.dialects.clip import CLIP
from lora_runtime.dialects.processor import PROCESSOR

PIPELINE = ("unet", "text_encoder", "text_encoder_2")


@pytest.mark.parametrize(
    ("stem", "component"),
    [
        ("lora_unet_down_blocks_0", "unet"),
        ("lora_transformer_blocks_0", "unet"),
        ("lycoris_down_blocks_0", "unet"),
        ("lora_te_text_model_encoder", "text_encoder"),
        ("lora_te1_text_model_encoder", "text_encoder"),
        ("lora_te2_text_model_encoder", "text_encoder_2"),
        ("lora_te3_encoder", "text_encoder_3"),
        ("unet.down_blocks.0", "unet"),
        ("text_encoder.text_model", "text_encoder"),
        ("text_encoder_2.text_model", "text_encoder_2"),
        ("transformer.blocks.0", "transformer"),
        ("oft_unet_input_blocks_1_1", "unet"),
        ("oft_te_text_model_encoder", "text_encoder"),
        ("oft_te1_text_model_encoder", "text_encoder"),
        ("oft_te2_text_model_encoder", "text_encoder_2"),
        ("cond_stage_model.transformer.text_model", "text_encoder"),
        ("conditioner.embedders.0.transformer.text_model", "text_encoder"),
        ("conditioner.embedders.1.model.transformer", "text_encoder_2"),
        ("text_encoders.t5xxl.transformer.encoder", "text_encoder_3"),
        ("diffusion_model.input_blocks.0.0", "unet"),
        ("base_model.model.unet.down_blocks.0", "unet"),
        ("down_blocks.0", None),
        ("", None),
    ],
)
def test_the_prefix_names_the_component(stem: str, component: str | None) -> None:
    assert component_of(stem) == component


def test_a_denoiser_of_any_class_has_the_prefixes_of_all_trainers() -> None:
    for name in ("unet", "transformer", "prior"):
        found = prefixes(name, [name, "text_encoder"])
        assert {"lora_unet_", "lycoris_", "diffusion_model.", f"{name}.", ""} <= set(found)


def test_a_second_denoiser_is_meant_by_its_own_name_only() -> None:
    assert prefixes("decoder", ["prior", "decoder"]) == ("decoder.",)
    assert set(prefixes("transformer_2", ["transformer", "transformer_2"])) == {
        "transformer_2.",
        "transformer_2.base_model.model.",
    }


def test_a_bare_path_means_a_text_encoder_only_where_there_is_one() -> None:
    assert "" in prefixes("text_encoder", ["unet", "text_encoder"])
    assert "" not in prefixes("text_encoder", PIPELINE)
    assert "" not in prefixes("text_encoder_2", PIPELINE)
    assert "" in prefixes("unet", PIPELINE)


def test_a_plain_model_takes_every_prefix() -> None:
    assert {"", "lora_unet_", "lora_te_", "lora_te2_", "transformer.", "diffusion_model."} <= set(
        prefixes("model", ["model"])
    )


PROCESSOR_PAIRS = [
    ("mid.attn1.to_q", "mid.attn1.processor.to_q"),
    ("mid.attn1.to_k", "mid.attn1.processor.to_k"),
    ("mid.attn1.to_v", "mid.attn1.processor.to_v"),
    ("mid.attn1.to_out.0", "mid.attn1.processor.to_out"),
    ("mid.attn1.to_out.0", "mid.attn1.processor.to_out.0"),
    ("mid.attn1.to_out.0", "mid.attn1.to_out"),
    ("mid.attn1.add_k_proj", "mid.attn1.processor.add_k_proj"),
]


def test_processors() -> None:
    paths = list(dict.fromkeys(path for path, _ in PROCESSOR_PAIRS))
    others = ["mid.ff.net.2", "mid.proj_in", "mid.attn1.to_out.1", "self_attn.q_proj", "conv_in", "layers.0"]
    assert set(PROCESSOR.spellings([*paths, *others])) == set(PROCESSOR_PAIRS)


INNER = ["embeddings.token_embedding", "embeddings.position_embedding", "encoder.layers.0.mlp.fc1", "final_layer_norm"]


def test_a_text_encoder_without_the_level_has_names_with_it() -> None:
    assert list(CLIP.spellings([*INNER, "text_projection"])) == [(path, f"text_model.{path}") for path in INNER]


def test_a_text_encoder_with_the_level_has_names_without_it() -> None:
    outer = [f"text_model.{path}" for path in INNER]
    found = dict(CLIP.spellings([*outer, "text_projection"]))
    assert found == dict(zip(outer, INNER, strict=True))


@pytest.mark.parametrize("level", ["", "text_model."])
def test_the_old_names_of_projections_in_both_layouts(level: str) -> None:
    attention = f"{level}encoder.layers.0.self_attn"
    paths = [f"{level}embeddings.token_embedding", f"{attention}.q_proj", f"{attention}.out_proj", f"{level}q_proj"]
    found = {name for path, name in CLIP.spellings(paths) if path == f"{attention}.q_proj"}
    assert found - {paths[1]} >= {f"{layer}encoder.layers.0.self_attn.to_q" for layer in ("", "text_model.")}
    assert (f"{attention}.out_proj", f"{attention}.to_out") in set(CLIP.spellings(paths))
    assert not [name for path, name in CLIP.spellings(paths) if path == f"{level}q_proj" and name.endswith("to_q")]


def test_other_encoders_have_no_second_layout() -> None:
    assert list(CLIP.spellings(["encoder.block.0.layer.0.SelfAttention.q", "shared"])) == []


def test_every_module_has_its_own_name_first() -> None:
    assert next(spellings(["a.b"])) == ("a.b", "a.b", WHOLE)


def test_the_dialects_are_named_once() -> None:
    names = [dialect.name for dialect in DIALECTS]
    assert sorted(set(names)) == sorted(names)


T5 = ["text_encoders.t5xxl.transformer.", "lora_te3_"]


@pytest.mark.parametrize(
    ("components", "t5"),
    [
        (["transformer", "text_encoder", "text_encoder_2"], "text_encoder_2"),  # Flux
        (["transformer", "text_encoder"], "text_encoder"),  # Chroma, PixArt
        (["transformer", "text_encoder", "text_encoder_2", "text_encoder_3"], "text_encoder_3"),  # SD3
        (["transformer", *(f"text_encoder{end}" for end in ("", "_2", "_3", "_4"))], "text_encoder_3"),  # HiDream
    ],
)
def test_the_t5_is_the_last_text_encoder_unless_there_is_a_third(components: list[str], t5: str) -> None:
    for name in components:
        assert (set(T5) <= set(prefixes(name, components))) == (name == t5)
    assert "lora_te2_" in prefixes("text_encoder_2", components)  # OneTrainer's name for that of Flux


def test_normalising_keeps_case() -> None:
    assert normalise("layer.0.SelfAttention_q") == "layer_0_SelfAttention_q"
