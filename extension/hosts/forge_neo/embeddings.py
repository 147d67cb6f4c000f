"""Embeddings that are bundled in a LoRA file, in the tables of words that an engine's CLIP text encoders have.

An engine has a table for each of them, SDXL two, and a new engine new ones. Other text encoders have none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from backend.text_processing.textual_inversion import EmbeddingDatabase, create_embedding_from_data

from ..sdwebui import bundled

__all__ = ["BundledEmbeddings"]


class BundledEmbeddings(bundled.BundledEmbeddings):
    """The embeddings of the LoRAs that are shown, registered with the engine that is loaded."""

    def tables(self, model: Any) -> Sequence[Any]:
        """Return the tables of an engine."""
        found = (getattr(part, "embeddings", None) for part in vars(model).values()) if model is not None else ()
        return [table for table in found if isinstance(table, EmbeddingDatabase)]

    def make(self, data: dict[str, Any], name: str, path: str) -> Any:
        """Return the program's object for the contents of an embedding's file."""
        return create_embedding_from_data(data, name, filename=path, filepath=path)

    def register(self, table: Any, embedding: Any | None, name: str, model: Any) -> None:
        """Make a word known, or, without an embedding, unknown."""
        table.register_embedding_by_name(embedding, name)
