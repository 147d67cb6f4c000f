"""Configurations whose files hold no change of a model's own weights, or not all of it: refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

__all__ = ["refusal"]

_PROMPT = "learns what stands before the prompt, and changes no weight"
_ROUTED = "mixes several adapters anew for each input, so that it is no one change of the weights"
# peft_type → why.
_TUNERS = MappingProxyType(
    {
        "PROMPT_TUNING": f"prompt tuning {_PROMPT}",
        "MULTITASK_PROMPT_TUNING": f"multitask prompt tuning {_PROMPT}",
        "P_TUNING": f"P-tuning {_PROMPT}",
        "PREFIX_TUNING": f"prefix tuning {_PROMPT}",
        "CPT": f"context-aware prompt tuning (CPT) {_PROMPT}",
        "CARTRIDGE": f"a cartridge {_PROMPT}",
        "ADAPTION_PROMPT": "an adaption prompt adds attention to learnt prompts, and changes no weight",
        "XLORA": f"X-LoRA {_ROUTED}",
        "POLY": f"Polytropon {_ROUTED}",
        "LILY": f"Lily {_ROUTED}",
        "SHADOW": "ShadowPEFT runs a second network beside the model, and changes no weight",
        "TINYLORA": (
            "TinyLoRA's file does not say which module has which of its vectors: the order of the modules in the model "
            "that it was trained on does"
        ),
    }
)
# These begin by changing the weights of the model, so their factors are right only on the changed ones.
_CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
# Settings of LoRA that make it more than a product of its factors: name → why, where it is set.
_VARIANTS = MappingProxyType(
    {
        "use_qalora": "QALoRA adds up groups of inputs before its factors, beside a quantised weight",
        "alora_invocation_tokens": "an activated LoRA (aLoRA) acts only on what follows its invocation tokens",
        "arrow_config": f"Arrow {_ROUTED}",
        "kasa_config": "KaSA began by cutting singular values from the model's weights, and is right only on those",
        "use_bdlora": "BD-LoRA's factors are the blocks of a diagonal, which are not supported yet",
        "layer_replication": "its model repeats layers (layer_replication), which one with each once has no place for",
    }
)


def refusal(config: Mapping[str, Any]) -> str | None:
    """Return why a file with this configuration cannot be used, or None where nothing speaks against it.

    `config`: an adapter_config.json, or the settings of one component in a file's metadata, which have no peft_type.
    """
    kind = config.get("peft_type", "LORA")
    if isinstance(kind, str) and kind in _TUNERS:
        return f"{_TUNERS[kind]}: it cannot be applied to weights"
    if kind != "LORA":
        return None
    if config.get("fine_tune_type") == "full":
        return "its training changed whole weights (MLX's fine_tune_type full): it is a part of a model and no adapter"
    start = str(config.get("init_lora_weights", ""))
    if start.lower().startswith(_CHANGE_THE_BASE):
        return (
            f"its training began by changing the model's weights ({start}), and its factors are right only on those; "
            "save it again with path_initial_model_for_weight_conversion"
        )
    return next((reason for name, reason in _VARIANTS.items() if config.get(name)), None)
