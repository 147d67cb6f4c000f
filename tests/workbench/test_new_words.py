"""The names of words that a model has learnt, in all files in which tokenizers keep them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_runtime.errors import LoraFileError
from lora_runtime.workbench.new_words import grows, words_of

ROWS = torch.arange(12.0).reshape(4, 3)  # the tokens 9 to 12
NAMES = {"ink": 9, "ink_1": 10, "ink_2": 11, "old_2": 12}
FILES: dict[str, Any] = {
    "added_tokens.json": NAMES,
    "tokenizer_config.json": {"added_tokens_decoder": {str(number): {"content": n} for n, number in NAMES.items()}},
    "tokenizer.json": {"added_tokens": [{"id": number, "content": name} for name, number in NAMES.items()]},
}


def folder(path: Path, file: str, text: str, name: str = "tokenizer_2") -> Path:
    (path / name).mkdir()
    (path / name / file).write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("file", FILES)
def test_a_tokenizer_names_the_words_and_numbered_ones_are_one_word(tmp_path: Path, file: str) -> None:
    model = folder(tmp_path, file, json.dumps(FILES[file]))
    found = words_of(model, "text_encoder_2", ROWS, 9, word=None, alone=False)
    # old_2 follows no old_1: it is a word of its own.
    assert list(found) == ["bundle_emb.ink.clip_g", "bundle_emb.old_2.clip_g"]
    assert torch.equal(found["bundle_emb.ink.clip_g"], ROWS[:3])
    assert torch.equal(found["bundle_emb.old_2.clip_g"], ROWS[3:])


def test_a_word_that_is_given_is_all_rows_whatever_the_tokenizer_says(tmp_path: Path) -> None:
    model = folder(tmp_path, "added_tokens.json", json.dumps(NAMES), "tokenizer")
    first = words_of(model, "text_encoder", ROWS, 9, word="zqx", alone=False)
    assert list(first) == ["bundle_emb.zqx.clip_l"]
    assert torch.equal(first["bundle_emb.zqx.clip_l"], ROWS)


@pytest.mark.parametrize("text", ["{", "[1]", '{"ink": "x"}'])
def test_a_file_that_cannot_be_read_is_told(tmp_path: Path, text: str) -> None:
    model = folder(tmp_path, "added_tokens.json", text)
    with pytest.raises(LoraFileError, match=r"added_tokens\.json: is no file of a tokenizer that can be read"):
        words_of(model, "text_encoder_2", ROWS, 9, word=None, alone=False)


def test_a_token_without_a_name_and_an_encoder_without_a_place_are_told(tmp_path: Path) -> None:
    model = folder(tmp_path, "tokenizer_config.json", "{}")
    with pytest.raises(LoraFileError, match="names the new token 9 of its text_encoder_2: say what the new words are"):
        words_of(model, "text_encoder_2", ROWS, 9, word=None, alone=False)
    with pytest.raises(LoraFileError, match="no file has a name for words of its text_encoder_3"):
        words_of(model, "text_encoder_3", ROWS, 9, word="zqx", alone=False)


def test_only_a_table_of_tokens_that_got_longer_grows() -> None:
    assert grows("text_model.embeddings.token_embedding.weight", (11, 4), (9, 4))
    assert not grows("text_model.embeddings.token_embedding.weight", (9, 4), (9, 4))
    assert not grows("text_model.embeddings.token_embedding.weight", (11, 5), (9, 4))
    assert not grows("text_model.embeddings.position_embedding.weight", (11, 4), (9, 4))
