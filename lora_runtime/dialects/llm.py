"""Language models as text encoders (Qwen, Gemma, Llama): the levels above the layers differ.

A causal model has `model.layers.0`, the bare one `layers.0`; one that sees pictures has `model.language_model.layers.0`
since transformers 4.52, and had `language_model.model.layers.0` or `model.layers.0` before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import MappingProxyType

from lora_runtime.families.dialect import Dialect

__all__ = ["LLM"]

_LEVELS = ("", "model.", "language_model.", "language_model.model.", "model.language_model.")
_INSIDE = ("layers.", "embed_tokens", "norm")
_MARKS = ("embed_tokens", "layers.0.self_attn.q_proj")
# ComfyUI's names for them: Lumina 2, LTX-2, HunyuanVideo and HiDream, Qwen-Image, Z-Image, Anima, Krea 2.
_COMFY = (
    *("gemma2_2b", "gemma3_12b", "llama", "qwen25_7b", "qwen3_4b", "qwen3_06b", "qwen3vl_4b"),
    "umt5xxl",  # Wan's, which is no language model, but the only encoder too
)


def spellings(paths: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each module's name under the other levels."""
    live = next((level for level in _LEVELS if all(level + mark in paths for mark in _MARKS)), None)
    if live is None:
        return
    for path in paths:
        inner = path[len(live) :]
        if path.startswith(live) and inner.startswith(_INSIDE):
            yield from ((path, level + inner) for level in _LEVELS if level != live)


LLM = Dialect(
    "llm",
    MappingProxyType(
        {
            "text_encoder": tuple(f"text_encoders.{name}.transformer." for name in _COMFY),
            "text_encoder_4": (
                *("lora_te4_", "text_encoder_4.", "text_encoder_4.base_model.model."),
                "text_encoders.llama.transformer.",  # the fourth of HiDream
            ),
        }
    ),
    spellings,
)
