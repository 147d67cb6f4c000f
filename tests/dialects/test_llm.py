"""Language models as text encoders: every level that transformers has had above the layers, in what it has now."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_dit
import torch
import transformers

from lora_runtime.dialects.llm import LLM
from lora_runtime.pipelines import view
from lora_runtime.targets import Targets

SIZES: dict[str, Any] = {
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "vocab_size": 32,
    "pad_token_id": 0,
}


def qwen_vl() -> Any:
    config = transformers.Qwen2_5_VLConfig(
        text_config=SIZES | {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 0]}},
        vision_config={"hidden_size": 8, "depth": 1, "num_heads": 2, "out_hidden_size": 8, "intermediate_size": 8},
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


MODELS = {
    "qwen 2.5 vl": (qwen_vl, "model.language_model."),
    "gemma 2": (lambda: transformers.Gemma2Model(transformers.Gemma2Config(**SIZES)), ""),
    "qwen 3": (lambda: transformers.Qwen3Model(transformers.Qwen3Config(**SIZES)), ""),
    "llama": (lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)), "model."),
}
LAYERS = ("layers.1.self_attn.q_proj", "layers.0.mlp.down_proj", "layers.1.input_layernorm", "embed_tokens", "norm")


@pytest.mark.parametrize("level", ["", "model.", "language_model.", "language_model.model.", "model.language_model."])
@pytest.mark.parametrize("name", MODELS)
def test_the_layers_of_a_language_model_under_every_level(name: str, level: str) -> None:
    make, live = MODELS[name]
    with torch.device("meta"):
        model = make()
    targets = Targets(view(tiny_dit.pipeline(transformer=torch.nn.Identity(), text_encoder=model)))
    for layer in LAYERS:
        expected = model.get_submodule(live + layer)
        for stem in (f"text_encoder.{level}{layer}", "lora_te_" + f"{level}{layer}".replace(".", "_")):
            target = targets.find(stem)
            assert target is not None, targets.reason(stem)
            assert target.module is expected


@pytest.mark.parametrize(
    ("stem", "component"),
    [
        ("text_encoders.qwen25_7b.transformer.model.layers.0.self_attn.q_proj", "text_encoder"),
        ("text_encoders.llama.transformer.model.layers.0.self_attn.q_proj", "text_encoder_4"),
        ("lora_te4_model_layers_0_self_attn_q_proj", "text_encoder_4"),
    ],
)
def test_the_prefixes_of_comfyui(stem: str, component: str) -> None:
    names = ["text_encoder"] if component == "text_encoder" else ["text_encoder", "text_encoder_2", "text_encoder_4"]
    make, live = MODELS["llama"]
    with torch.device("meta"):
        models = {name: make() for name in names}
    targets = Targets(view(tiny_dit.pipeline(transformer=torch.nn.Identity(), **models)))
    if component == "text_encoder_4":  # in a pipeline of that many, the first is CLIP
        models["text_encoder"] = models["text_encoder_2"] = torch.nn.Identity()
        targets = Targets(view(tiny_dit.pipeline(transformer=torch.nn.Identity(), **models)))
    target = targets.find(stem)
    assert target is not None, targets.reason(stem)
    assert target.module is models[component].get_submodule(f"{live}layers.0.self_attn.q_proj")


def test_other_encoders_have_no_levels() -> None:
    assert list(LLM.spellings(["encoder.block.0.layer.0.SelfAttention.q", "embed_tokens", "shared"])) == []
