"""Prompt text to clean text and tags, and back. Needs no torch; lark is imported when the first prompt is parsed."""

from lora_runtime.prompt.block_weights import BlockWeights
from lora_runtime.prompt.parser import parse_prompt
from lora_runtime.prompt.presets import load_presets
from lora_runtime.prompt.strength import Curve, Moment, Region, Strength, Turn, Window, at
from lora_runtime.prompt.tags import ALWAYS, Conditions, Diagnostic, LoraTag, OtherTag, Prompt
from lora_runtime.prompt.writer import format_tag, unparse

__all__ = [
    "ALWAYS",
    "BlockWeights",
    "Conditions",
    "Curve",
    "Diagnostic",
    "LoraTag",
    "Moment",
    "OtherTag",
    "Prompt",
    "Region",
    "Strength",
    "Turn",
    "Window",
    "at",
    "format_tag",
    "load_presets",
    "parse_prompt",
    "unparse",
]
