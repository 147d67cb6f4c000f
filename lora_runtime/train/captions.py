"""How a caption is said at one showing of its picture: tags in another order, or nothing at all."""

from __future__ import annotations

import random

__all__ = ["vary"]


def vary(caption: str, rng: random.Random, *, shuffle: bool, keep_tokens: int, dropout: float) -> str:
    """Return a caption as the model reads it this time.

    With the chance `dropout` it is "". With `shuffle` its tags, which commas part, are in any order but for the first
    `keep_tokens`; without, it stays as it is to the character.
    """
    if dropout and rng.random() < dropout:
        return ""
    if not shuffle:
        return caption
    tags = [tag.strip() for tag in caption.split(",") if tag.strip()]
    rest = tags[keep_tokens:]
    rng.shuffle(rest)
    return ", ".join(tags[:keep_tokens] + rest)
