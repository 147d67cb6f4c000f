"""Embeddings that are bundled in a LoRA file: words that the text encoder knows while the LoRA is in the prompt."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from modules import sd_hijack
from modules.textual_inversion import textual_inversion

from lora_runtime.requests import Request

from ...prompts.notices import Notice


class BundledEmbeddings:
    """The embeddings of the LoRAs that are shown, registered with the WebUI."""

    def __init__(self) -> None:
        self._shown: dict[tuple[str, str], Any] = {}  # (name of the embedding, hash of the file) → the WebUI's object

    def show(self, requests: Iterable[Request], model: Any, *, listed: bool = True) -> list[Notice]:
        """Register the embeddings of just these files; a name that the user has an own embedding for stays that.

        `listed`: the WebUI writes the LoRA's name as the embedding's hash into the infotext. Returns what there is to
        say about those that the WebUI cannot use.
        """
        notices: list[Notice] = []
        wanted = {
            (name, request.lora.sha256): (request.lora, tensors)
            for request in requests
            for name, tensors in request.lora.embeddings.items()
        }
        if not wanted and not self._shown:
            return notices
        database = sd_hijack.model_hijack.embedding_db
        for key in [key for key in self._shown if key not in wanted]:
            embedding = self._shown.pop(key)
            if database.word_embeddings.get(key[0]) is embedding:
                self._forget(database, key[0], model)
        for key, (lora, tensors) in wanted.items():
            name, known = key[0], self._shown.get(key)
            registered = database.word_embeddings.get(name)
            if registered is None or (known is not None and registered is not known):  # new, or lost in a reload of all
                try:
                    known = textual_inversion.create_embedding_from_data(
                        _as_saved(tensors), name, filename=f"{lora.path}/{name}"
                    )
                    if database.expected_shape not in (-1, known.shape):
                        continue  # for a text encoder of another width
                    database.register_embedding(known, model)
                except Exception as error:  # the WebUI's code, with what a stranger's file holds
                    why = f"{type(error).__name__}: {error}"
                    notices.append(Notice("error", f'the embedding "{name}" in "{lora.name}" cannot be used: {why}'))
                    continue
                self._shown[key] = known
            if known is not None:
                known.shorthash = lora.name if listed else ""
        return notices

    @staticmethod
    def _forget(database: Any, name: str, model: Any) -> None:
        """Take a name out of the WebUI's tables."""
        if model is not None:
            database.register_embedding_by_name(None, model, name)
        else:
            database.word_embeddings.pop(name, None)


def _as_saved(tensors: Any) -> dict[str, Any]:
    """Return the tensors as an embedding's own file has them, which the WebUI reads."""
    saved: dict[str, Any] = {}
    for key, tensor in tensors.items():
        outer, _, inner = key.partition(".")
        if outer == "string_to_param":
            saved[outer] = {inner or "*": tensor}
        else:
            saved[key] = tensor
    return saved
