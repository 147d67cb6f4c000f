"""Embeddings: words that stand for vectors, and the table of those that one text encoder knows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class Embedding:
    """One word."""

    def __init__(self, vec: Any, name: str) -> None:
        self.vec, self.name = vec, name
        self.vectors = self.shape = -1


class EmbeddingDatabase:
    """All words of one text encoder, by name and by the numbers of their letters; texts are read by the numbers."""

    def __init__(self, tokenizer: Callable[[str], list[int]], expected_shape: int) -> None:
        self.word_embeddings: dict[str, Embedding] = {}
        self.ids_lookup: dict[int, list[tuple[list[int], Embedding]]] = {}
        self.expected_shape, self.tokenizer = expected_shape, tokenizer

    def register_embedding_by_name(self, embedding: Embedding | None, name: str) -> None:
        """Make a word known, or, without an embedding, unknown."""
        ids = self.tokenizer(name)
        others = [pair for pair in self.ids_lookup.pop(ids[0], []) if pair[1].name != name]
        self.word_embeddings.pop(name, None)
        if embedding is not None:
            others.append((ids, embedding))
            self.word_embeddings[name] = embedding
        if others:
            self.ids_lookup[ids[0]] = others

    def read(self, text: str) -> tuple[Embedding, ...]:
        """Return the embeddings of the words in a text."""
        words = [self.tokenizer(word) for word in text.split()]
        pairs = [pair for found in self.ids_lookup.values() for pair in found]
        return tuple(embedding for word in words for ids, embedding in pairs if ids == word)


def create_embedding_from_data(data: Any, name: str, filename: str = "?", filepath: str | None = None) -> Embedding:
    """Return the embedding in a file's contents, of the three forms that there are."""
    if "string_to_param" in data:
        (vec,) = data["string_to_param"].values()
    elif "clip_g" in data and "clip_l" in data:
        vec = dict(data)
    else:
        assert len(data) == 1, "embedding file has multiple terms in it"
        (vec,) = data.values()
        vec = vec[None] if vec.dim() == 1 else vec
    made = Embedding(vec, name)
    parts: list[torch.Tensor] = list(vec.values()) if isinstance(vec, dict) else [vec]
    made.shape, made.vectors = sum(part.shape[-1] for part in parts), len(parts[0])
    return made
