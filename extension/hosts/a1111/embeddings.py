"""Embeddings that are bundled in a LoRA file, in the one table of words that this WebUI has for all its models."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from modules import sd_hijack
from modules.textual_inversion import textual_inversion

from lora_runtime.requests import Request

from ...prompts.notices import Notice
from ..sdwebui import bundled

__all__ = ["BundledEmbeddings"]


class BundledEmbeddings(bundled.BundledEmbeddings):
    """The embeddings of the LoRAs that are shown, registered with the WebUI."""

    def tables(self, model: Any) -> Sequence[Any]:
        """Return the one table; it is there without a model too."""
        return (sd_hijack.model_hijack.embedding_db,)

    def make(self, data: dict[str, Any], name: str, path: str) -> Any:
        """Return the WebUI's object for the contents of an embedding's file."""
        return textual_inversion.create_embedding_from_data(data, name, filename=path)

    def register(self, table: Any, embedding: Any | None, name: str, model: Any) -> None:
        """Make a word known, or, without an embedding, unknown; the model's tokenizer says what a word consists of."""
        if embedding is None and model is None:
            table.word_embeddings.pop(name, None)
        else:
            table.register_embedding_by_name(embedding, model, name)

    def show(self, requests: Iterable[Request], model: Any, *, listed: bool = True) -> list[Notice]:
        """Register the embeddings of just these files.

        `listed`: the WebUI writes the LoRA's name as the embedding's hash into the infotext.
        """
        notices = super().show(requests, model)
        for embedding, lora in self.shown.values():
            embedding.shorthash = lora.name if listed else ""
        return notices
