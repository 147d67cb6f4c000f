"""Balance: a prompt with its strengths written anew, so that its LoRAs together are no stronger than the strongest.

The factor is one for all: what a file is to another stays as it was asked. It is written into the tags and never
applied behind them, so that a prompt says what acts, and a picture's own text paints it again.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from lora_runtime.prompt import LoraTag, Prompt, parse_prompt
from lora_runtime.prompt.block_weights import BlockWeights
from lora_runtime.prompt.strength import Curve, Strength
from lora_runtime.prompt.writer import unparse
from lora_runtime.workbench.base_model import Model
from lora_runtime.workbench.report import report

__all__ = ["balanced", "scaled"]

_DIGITS = 3  # of a strength, as people write it


def balanced(
    prompt: str,
    *,
    model: str | os.PathLike[str] | Model | None = None,
    loras: Sequence[str | os.PathLike[str]] | None = None,
) -> str:
    """Return the prompt with all strengths times one factor, at most 1, so that ‖ΣΔ‖ is that of the strongest alone.

        with lora_runtime.apply(pipe, balanced(prompt, loras=["loras/"]), loras="loras/") as applied:

    Strengths are rounded to three digits behind the point. All else stays as written; `model` and `loras` are those of
    `report`, and so is what is raised.
    """
    return scaled(prompt, report([prompt], model=model, loras=loras).balance)


def scaled(prompt: str | Prompt, factor: float) -> str:
    """Return the prompt with the strengths of all its tags times a factor; as it is where that is 1.

    ValueError where a tag of the prompt has no text that says it, as `unparse` raises it.
    """
    read = parse_prompt(prompt) if isinstance(prompt, str) else prompt
    return read.source if factor == 1 else unparse(replace(read, tags=tuple(_scaled(tag, factor) for tag in read.tags)))


def _scaled(tag: LoraTag, factor: float) -> LoraTag:
    def times(strength: Strength) -> Strength:
        if isinstance(strength, Curve):
            return replace(strength, keys=tuple(replace(k, value=_rounded(k.value * factor)) for k in strength.keys))
        return _rounded(strength * factor)

    def given(strength: Strength | None) -> Strength | None:
        return None if strength is None else times(strength)

    # The three parts' strengths stand in place of the tag's own; ratios of blocks are of what it is by now.
    blocks: BlockWeights | None = tag.conditions.blocks
    if blocks is not None:
        blocks = replace(blocks, inner=given(blocks.inner), mid=given(blocks.mid), outer=given(blocks.outer))
    conditions = replace(
        tag.conditions,
        hires_te=given(tag.conditions.hires_te),
        hires_unet=given(tag.conditions.hires_unet),
        blocks=blocks,
    )
    return replace(tag, te=times(tag.te), unet=times(tag.unet), conditions=conditions)


def _rounded(strength: float) -> float:
    return round(strength, _DIGITS)
