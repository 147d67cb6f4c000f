"""Embeddings: words that stand for vectors, and the table of those that the text encoder knows."""

from __future__ import annotations

from typing import Any

import torch


class Embedding:
    """One word."""

    def __init__(self, vec: Any, name: str) -> None:
        self.vec = vec
        self.name = name
        self.vectors = self.shape = -1
        self.filename: str | None = None
        self.shorthash: str | None = None


class EmbeddingDatabase:
    """All words. `expected_shape` is the width of the text encoder, -1 where nobody knows."""

    def __init__(self) -> None:
        self.word_embeddings: dict[str, Embedding] = {}
        self.ids_lookup: dict[int, list[tuple[list[int], Embedding]]] = {}
        self.expected_shape = -1
        self.on_disk: list[Embedding] = []  # the user's own

    def register_embedding(self, embedding: Embedding, model: Any) -> Any:
        """Make a word known."""
        return self.register_embedding_by_name(embedding, model, embedding.name)

    def register_embedding_by_name(self, embedding: Embedding | None, model: Any, name: str) -> Any:
        """Make a word known, or, without an embedding, unknown: both in the table of names and in that of tokens."""
        ids = model.cond_stage_model.tokenize([name])[0]
        others = [pair for pair in self.ids_lookup.pop(ids[0], []) if pair[1].name != name]
        if embedding is not None:
            others.append((ids, embedding))
            self.word_embeddings[name] = embedding
        else:
            self.word_embeddings.pop(name, None)
        if others:
            self.ids_lookup[ids[0]] = sorted(others, key=lambda pair: len(pair[0]), reverse=True)
        return embedding

    def load_textual_inversion_embeddings(self, model: Any) -> None:
        """Forget all words and read the user's own again: a checkpoint has been loaded."""
        self.word_embeddings.clear()
        self.ids_lookup.clear()
        self.expected_shape = model.text_width
        for embedding in self.on_disk:
            self.register_embedding(embedding, model)

    def words_in(self, text: str) -> list[str]:
        """Return the words that the text encoder would find, which it does by tokens."""
        known = {embedding.name for pairs in self.ids_lookup.values() for _, embedding in pairs}
        return sorted(name for name in known if name in text.split())


def create_embedding_from_data(data: Any, name: str, filename: str = "?", filepath: str | None = None) -> Embedding:
    """Return the embedding in a file's contents, of the three forms that there are."""
    if "string_to_param" in data:
        (vec,) = data["string_to_param"].values()
    elif "clip_g" in data and "clip_l" in data:
        vec = dict(data)
    elif isinstance(next(iter(data.values())), torch.Tensor):
        (vec,) = data.values()
        vec = vec[None] if vec.dim() == 1 else vec
    else:
        raise ValueError(f"{filename} holds no embedding")
    made = Embedding(vec, name)
    parts = list(vec.values()) if isinstance(vec, dict) else [vec]
    made.shape = sum(part.shape[-1] for part in parts)
    made.vectors = parts[0].shape[0]
    if filepath:
        made.filename = filepath
    return made
