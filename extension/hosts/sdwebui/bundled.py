"""Embeddings that are bundled in a LoRA file: words that the text encoder knows while the LoRA is in the prompt."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lora_runtime.lora import Lora
from lora_runtime.requests import Request

from ...prompts.notices import Notice

__all__ = ["BundledEmbeddings"]


class BundledEmbeddings(ABC):
    """The embeddings of the LoRAs that are shown, registered with the program; how that is done a host's own knows."""

    def __init__(self) -> None:
        self.shown: dict[tuple[str, str], tuple[Any, Lora]] = {}
        """By name and hash of the file, the program's object for an embedding and the file that it is in."""

    @abstractmethod
    def tables(self, model: Any) -> Sequence[Any]:
        """Return the program's tables of words that the prompts for a model are read by; none for no model."""

    @abstractmethod
    def make(self, data: dict[str, Any], name: str, path: str) -> Any:
        """Return the program's object for the contents of an embedding's file."""

    @abstractmethod
    def register(self, table: Any, embedding: Any | None, name: str, model: Any) -> None:
        """Make a word known in a table, or, without an embedding, unknown."""

    def show(self, requests: Iterable[Request], model: Any) -> list[Notice]:
        """Register the embeddings of just these files; a name that the user has an own embedding for stays that.

        Returns what there is to say about those that the program cannot use.
        """
        wanted = {
            (name, request.lora.sha256): (request.lora, tensors)
            for request in requests
            for name, tensors in request.lora.embeddings.items()
        }
        if not wanted and not self.shown:
            return []
        tables = self.tables(model)
        for key in [key for key in self.shown if key not in wanted]:
            embedding, _ = self.shown.pop(key)
            for table in tables:
                if table.word_embeddings.get(key[0]) is embedding:
                    self.register(table, None, key[0], model)
        notices = []
        for key, (lora, tensors) in wanted.items():
            problem = self._show(key, lora, tensors, tables, model)
            if problem:
                notices.append(Notice("error", f'the embedding "{key[0]}" in "{lora.name}" cannot be used: {problem}'))
        return notices

    def _show(
        self, key: tuple[str, str], lora: Lora, tensors: Mapping[str, Any], tables: Sequence[Any], model: Any
    ) -> str:
        """Register one embedding where it is not; return why that cannot be, or ""."""
        name = key[0]
        if not tables:
            return "this model reads no embeddings"
        known, _ = self.shown.get(key, (None, lora))
        registered = [table.word_embeddings.get(name) for table in tables]
        # Where it is lost, all words were read anew, or the model is another one.
        new = [table for table, found in zip(tables, registered, strict=True) if found is None]
        if new:
            try:
                known = self.make(_as_saved(tensors), name, f"{lora.path}/{name}")
                fitting = [table for table in new if table.expected_shape in (-1, known.shape)]
                for table in fitting:
                    self.register(table, known, name, model)
            except Exception as error:  # the program's code, with what a stranger's file holds
                return f"{type(error).__name__}: {error}"
            if not fitting:
                return f"it is {known.shape} wide, and this model's are {new[0].expected_shape}"
            self.shown[key] = known, lora
        return ""


def _as_saved(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tensors as an embedding's own file has them, which programs read."""
    saved: dict[str, Any] = {}
    for key, tensor in tensors.items():
        outer, _, inner = key.partition(".")
        if outer == "string_to_param":
            saved[outer] = {inner or "*": tensor}
        else:
            saved[key] = tensor
    return saved
