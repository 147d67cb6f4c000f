"""Alphas that only the metadata has, as diffusers writes them."""

from __future__ import annotations

import json

import pytest

from lora_runtime.adapters.training import read_training

STEM = "unet.down_blocks.0.attn1.to_q"


def metadata(**settings: object) -> dict[str, str]:
    return {"lora_adapter_metadata": json.dumps({f"unet.{name}": value for name, value in settings.items()})}


def test_no_metadata_says_nothing() -> None:
    assert read_training({"ss_network_dim": "8"}).alpha_of(STEM) == (None, False)


def test_the_alpha_is_that_of_the_component() -> None:
    found = read_training(
        {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 8, "unet.r": 4, "text_encoder.lora_alpha": 2})}
    )
    assert found.alpha_of(STEM) == (8.0, False)
    assert found.alpha_of("text_encoder.layers.0.q_proj") == (2.0, False)
    assert found.alpha_of("text_encoder_2.layers.0.q_proj") == (None, False)


def test_settings_without_a_component_are_for_the_whole_file() -> None:
    found = read_training({"lora_adapter_metadata": json.dumps({"lora_alpha": 3, "use_rslora": True})})
    assert found.alpha_of("down_blocks.0.to_q") == (3.0, True)


@pytest.mark.parametrize(
    ("pattern", "alpha"),
    [
        ("to_q", 5.0),  # the end of the path, at a dot
        ("attn1.to_q", 5.0),
        ("down_blocks.0.attn1.to_q", 5.0),
        ("^down_blocks.0.attn1.to_q", 5.0),
        (r"attn1\.to_q", 5.0),
        ("o_q", 8.0),
        ("to_k", 8.0),
        ("^attn1.to_q", 8.0),
    ],
)
def test_a_pattern_changes_the_alpha_of_the_modules_it_names(pattern: str, alpha: float) -> None:
    found = read_training(metadata(lora_alpha=8, alpha_pattern={pattern: 5}))
    assert found.alpha_of(STEM) == (alpha, False)


@pytest.mark.parametrize(
    "raw",
    [
        "{",
        "[]",
        "null",
        json.dumps({"unet.lora_alpha": "8"}),
        json.dumps({"unet.lora_alpha": True}),
        json.dumps({"unet.lora_alpha": float("nan")}),
        json.dumps({"unet.lora_alpha": 10**400}),
        json.dumps({"unet.alpha_pattern": {"(a+)+$": 3}}),
        json.dumps({"unet.alpha_pattern": {"to_q\\": 3}}),
        json.dumps({"unet.alpha_pattern": [1]}),
        json.dumps({"unet.alpha_pattern": {"to_q": None}}),
        "[" * 100_000,
    ],
)
def test_settings_that_cannot_be_read_are_an_error(raw: str) -> None:
    with pytest.raises(ValueError, match="lora_adapter_metadata cannot be read"):
        read_training({"lora_adapter_metadata": raw})
