"""Prompts to what the denoiser is given; equal texts are encoded once, and AND splits a prompt into parts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

re_AND = re.compile(r"\bAND\b")


@dataclass(frozen=True)
class Conditioning:
    """One text, the weights of the text encoder when it was encoded, and the embeddings that it knew in it."""

    text: str
    weights: dict[str, Tensor]
    embeddings: tuple[Any, ...] = ()


@dataclass(frozen=True)
class MulticondLearnedConditioning:
    """The prompts of a batch: of each picture its parts."""

    shape: tuple[int, ...]
    batch: list[list[Conditioning]]


class SdConditioning(list[str]):
    """Texts, and whether they are negative prompts."""

    def __init__(self, prompts: Sequence[str], is_negative_prompt: bool = False, copy_from: Any = None) -> None:
        super().__init__(prompts)
        source = prompts if copy_from is None else copy_from
        self.is_negative_prompt = is_negative_prompt or getattr(source, "is_negative_prompt", False)


def get_learned_conditioning(model: Any, prompts: Sequence[str], steps: int, hires_steps: Any = None) -> list[Any]:
    """Return one for each text."""
    known = {text: model.get_learned_conditioning(text) for text in dict.fromkeys(prompts)}
    return [known[text] for text in prompts]


def get_multicond_learned_conditioning(
    model: Any, prompts: Sequence[str], steps: int, hires_steps: Any = None
) -> MulticondLearnedConditioning:
    """Return the parts of each prompt."""
    parts = [re_AND.split(prompt) for prompt in prompts]
    texts = list(dict.fromkeys(text for split in parts for text in split))
    encoded = get_learned_conditioning(model, SdConditioning(texts, copy_from=prompts), steps, hires_steps)
    by_text = dict(zip(texts, encoded, strict=True))
    return MulticondLearnedConditioning((len(prompts),), [[by_text[text] for text in split] for split in parts])
