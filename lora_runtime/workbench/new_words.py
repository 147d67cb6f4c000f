"""Words that a tuned model has learnt: the rows that its text encoders' tables of tokens have more than the base's.

A file of LoRAs brings them along as bundled embeddings (`bundle_emb.WORD.clip_l`), a list of vectors for each encoder.
What the words are the tokenizer beside the text encoder knows; a checkpoint has none, and there it must be said.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lora_runtime.errors import LoraFileError

__all__ = ["grows", "words_of"]

_TABLE = "token_embedding.weight"  # of CLIP, in every layout
# By the component's name, where a model has several encoders; what the other programs read for one has no place in it.
_PLACES = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
_ONLY = "string_to_param.*"
_LATER = re.compile(r"(.+)_(\d+)")  # diffusers' names for a word of several vectors: ink, ink_1, ink_2


def grows(path: str, tuned: tuple[int, ...], base: tuple[int, ...]) -> bool:
    """Return whether a parameter is a table of CLIP's tokens that has more rows than it had."""
    same = len(tuned) == len(base) == 2 and tuned[1:] == base[1:]
    return path.endswith(_TABLE) and same and tuned[0] > base[0]


def words_of(
    model: Path, component: str, rows: Tensor, first: int, *, word: str | None, alone: bool
) -> Mapping[str, Tensor]:
    """Return the vectors of the new words, (tokens, width) each, by the keys of a bundled embedding.

    `rows`: the new rows of a component's table, (new, width), the first of them the token `first`; `word`: what all of
    them are together, or None where the tokenizer in the folder `model` tells; `alone`: whether the model has no other
    text encoder. LoraFileError where a name is missing or can be none in a file.
    """
    names = {first: word} if word is not None else _named(model, component, range(first, first + len(rows)))
    starts = sorted(names)
    place = _ONLY if alone else _PLACES.get(component)
    if place is None:
        raise LoraFileError(f"{model}: no file has a name for words of its {component}")
    found = {}
    for start, end in zip(starts, [*starts[1:], first + len(rows)], strict=True):
        name = names[start]
        if not name or "." in name:
            raise LoraFileError(f'{model}: its word "{name}" can be none in a file: no dot may be in it; give another')
        found[f"bundle_emb.{name}.{place}"] = rows[start - first : end - first]
    return found


def _named(model: Path, component: str, tokens: range) -> dict[int, str]:
    """Return the words by their first tokens, as the tokenizer beside the component has them."""
    added = _added(model / component.replace("text_encoder", "tokenizer"))
    found: dict[int, str] = {}
    word, count = None, 0
    for token in tokens:
        name = added.get(token)
        if name is None:
            raise LoraFileError(
                f"{model}: no tokenizer beside it names the new token {token} of its {component}: say what the new "
                "words are together, --textual-inversion WORD (textual_inversion=…)"
            )
        later = _LATER.fullmatch(name)
        if later is not None and word is not None and (later[1], int(later[2])) == (word, count):
            count += 1
            continue
        found[token], word, count = name, name, 1
    return found


def _added(tokenizer: Path) -> dict[int, str]:
    """Return the tokens that were added to a tokenizer, by number; nothing where the folder has none."""
    try:
        if (file := tokenizer / "added_tokens.json").is_file():
            return {int(token): str(name) for name, token in _read(file).items()}
        if (file := tokenizer / "tokenizer_config.json").is_file():
            table = _read(file).get("added_tokens_decoder", {})
            if table:
                return {int(token): str(entry["content"]) for token, entry in table.items()}
        if (file := tokenizer / "tokenizer.json").is_file():
            return {int(entry["id"]): str(entry["content"]) for entry in _read(file).get("added_tokens", ())}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LoraFileError(f"{file}: is no file of a tokenizer that can be read ({error})") from error
    return {}


def _read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))
