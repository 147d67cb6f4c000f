"""Which side of the guidance a text encoder's call is for: told by the words that it is given.

A pipeline may call an encoder several times for one prompt, a stretch of it each time, or for prompt and negative
prompt one after the other. What could be either's is the prompt's the first time, before anything has been painted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from lora_runtime.families import Side

__all__ = ["Texts"]


class Texts:
    """The prompts and the negative prompts of one `apply`, and how its pipeline spells them in tokens."""

    def __init__(
        self, ask: Callable[[str], Any], prompts: Sequence[str] = (), negatives: Sequence[str] | None = None
    ) -> None:
        """`ask` gives an attribute of the pipeline; `negatives` is None where nothing depends on the side."""
        self._ask = ask
        self._prompts = tuple(map(_plain, prompts))
        self._negatives = None if negatives is None else tuple(map(_plain, negatives))
        self._called: set[str] = set()

    def painting(self) -> None:
        """Note that the denoiser runs: the next text is another picture's."""
        self._called.clear()

    def side(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Side | None:
        """Return the side of a call of the text encoder of this name, or None where it cannot be told."""
        first = name not in self._called
        self._called.add(name)
        if self._negatives is None:
            return "positive"
        words = self._words(name, args[0] if args else kwargs.get("input_ids"))
        if words is None:
            return "positive" if first else None
        negative = sum(map(_likeness, words, self._repeated(self._negatives, len(words))))
        positive = sum(map(_likeness, words, self._repeated(self._prompts, len(words))))
        if positive != negative:
            return "positive" if positive > negative else "negative"
        if first:
            return "positive"
        return "negative" if positive else None  # the same words for both sides, and the prompt's come first

    @staticmethod
    def _repeated(texts: Sequence[str], rows: int) -> Sequence[str]:
        """Return a text for each row: images of one prompt come one after the other."""
        each = max(1, rows // max(1, len(texts)))
        return [text for text in texts for _ in range(each)]

    def _words(self, name: str, ids: Any) -> list[str] | None:
        """Return what the rows of these token ids say."""
        tokenizer = self._ask("tokenizer" + name.removeprefix("text_encoder"))
        decode = getattr(getattr(tokenizer, "tokenizer", tokenizer), "batch_decode", None)
        if not isinstance(ids, Tensor) or ids.ndim != 2 or decode is None:
            return None
        return [_plain(text) for text in decode(ids, skip_special_tokens=True)]


def _plain(text: str) -> str:
    """Return a text as tokenizers may give it back: no case, no spaces."""
    return "".join(text.lower().split())


def _likeness(words: str, text: str) -> int:
    """Return 2 where these words are a text, 1 where they are a stretch of it or hold it within a template, else 0."""
    if words == text:
        return 2
    return int(bool(words and text and (words in text or text in words)))
