"""Which side a text encoder's call is for: told by its words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from lora_runtime.texts import Texts

WORDS = ["", "a", "cat", "dog", "blurry", "in", "rain"]


class Tokenizer:
    """Whole words."""

    def batch_decode(self, ids: torch.Tensor, skip_special_tokens: bool) -> list[str]:
        assert skip_special_tokens
        return [" ".join(WORDS[number] for number in row if number) for row in ids.tolist()]


def ids(*texts: str, length: int = 6) -> torch.Tensor:
    rows = [[WORDS.index(word) for word in text.split()] for text in texts]
    return torch.tensor([row + [0] * (length - len(row)) for row in rows])


def sides(prompts: Sequence[str], negatives: Sequence[str] | None, *calls: torch.Tensor, **pipeline: Any) -> str:
    texts = Texts({"tokenizer": Tokenizer(), **pipeline}.get, prompts, negatives)
    return "".join((texts.side("text_encoder", (call,), {}) or "?")[0] for call in calls)


@pytest.mark.parametrize(("prompts", "negatives", "calls", "expected"), [
    (["a cat"], ["blurry"], [["a cat"], ["blurry"]], "pn"),
    (["a cat"], ["blurry"], [["blurry"], ["a cat"]], "np"),
    (["a cat"], [""], [["a cat"], [""]], "pn"),
    (["a cat in rain"], ["blurry"], [["a cat"], ["in"], ["rain"]], "ppp"),
    (["a cat"], ["a cat blurry"], [["a cat"], ["a cat blurry"]], "pn"),
    (["a cat"], ["a cat"], [["a cat"], ["a cat"]], "pn"),
    (["a cat", "a dog"], ["blurry", "rain"], [["a cat", "a dog"], ["blurry", "rain"]], "pn"),
    (["a cat"], ["blurry"], [["a cat"], ["dog"]], "p?"),
    (["a cat"], None, [["a cat"], ["blurry"], ["dog"]], "ppp"),
])  # fmt: skip
def test_a_call_is_of_the_side_whose_words_it_has(
    prompts: list[str], negatives: list[str] | None, calls: list[list[str]], expected: str
) -> None:
    assert sides(prompts, negatives, *(ids(*call) for call in calls)) == expected


def test_without_a_tokenizer_the_first_call_is_the_prompt_s_and_others_cannot_be_told() -> None:
    assert sides(["a cat"], ["blurry"], ids("a cat"), ids("blurry"), tokenizer=None) == "p?"


def test_after_painting_the_first_call_is_a_prompt_s_again() -> None:
    texts = Texts({}.get, ["a cat"], ["blurry"])
    assert [texts.side("text_encoder", (ids("a"),), {}) for _ in range(2)] == ["positive", None]
    texts.painting()
    assert texts.side("text_encoder", (ids("a"),), {}) == "positive"
