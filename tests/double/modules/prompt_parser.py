"""Prompts to what the denoiser is given; equal texts are encoded once, and AND splits a prompt into parts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from modules import sd_hijack
from torch import Tensor

re_AND = re.compile(r"\bAND\b")


@dataclass(frozen=True)
class Conditioning:
    """One text as the text encoder had it: with its weights and the words that it knew then."""

    text: str
    words: tuple[str, ...]
    weights: dict[str, Tensor]


@dataclass(frozen=True)
class MulticondLearnedConditioning:
    """The prompts of a batch: of each picture its parts."""

    shape: tuple[int, ...]
    batch: list[list[Conditioning]]

    @property
    def prompts(self) -> tuple[str, ...]:
        return tuple("AND".join(part.text for part in parts) for parts in self.batch)

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(word for parts in self.batch for part in parts for word in part.words))

    @property
    def weights(self) -> dict[str, Tensor]:
        """The text encoder's weights when the first text was encoded."""
        return self.batch[0][0].weights


class SdConditioning(list[str]):
    """Texts, and whether they are negative prompts."""

    def __init__(self, prompts: Sequence[str], is_negative_prompt: bool = False, copy_from: Any = None) -> None:
        super().__init__(prompts)
        source = prompts if copy_from is None else copy_from
        self.is_negative_prompt = is_negative_prompt or getattr(source, "is_negative_prompt", False)


def get_learned_conditioning(
    model: Any, prompts: Sequence[str], steps: int, hires_steps: Any = None, old: bool = False
) -> list[Conditioning]:
    """Return one for each text."""
    known: dict[str, Conditioning] = {}
    for text in prompts:
        if text not in known:
            weights = {
                name: tensor.detach().clone()
                for name, tensor in sd_hijack.weights_of(model).items()
                if not name.startswith("model.")
            }
            words = sd_hijack.model_hijack.embedding_db.words_in(text)
            known[text] = Conditioning(text, tuple(words), weights)
    return [known[text] for text in prompts]


def get_multicond_learned_conditioning(
    model: Any, prompts: Sequence[str], steps: int, hires_steps: Any = None, old: bool = False
) -> MulticondLearnedConditioning:
    """Return the parts of each prompt; a text that comes twice is the same object."""
    parts = [re_AND.split(prompt) for prompt in prompts]
    texts = list(dict.fromkeys(text for split in parts for text in split))
    encoded = get_learned_conditioning(model, SdConditioning(texts, copy_from=prompts), steps, hires_steps, old)
    by_text = dict(zip(texts, encoded, strict=True))
    return MulticondLearnedConditioning((len(prompts),), [[by_text[text] for text in split] for split in parts])
