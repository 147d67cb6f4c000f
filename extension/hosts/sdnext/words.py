"""Words that LoRA files bring along, in the tokenizers and text encoders of the pipeline while a picture is painted.

No longer than that: SD.Next adds the user's own words to the same tokenizers between pictures, and what these have
learnt here is forgotten by giving them the state back that they had before.
"""

from __future__ import annotations

from collections.abc import Sequence

from lora_runtime.embeddings import load_embeddings
from lora_runtime.hooks import Endings, end_all
from lora_runtime.pipelines import ModelView
from lora_runtime.requests import Request

from ...prompts.notices import Notice

__all__ = ["BundledWords"]


class BundledWords:
    """The words of the files that a pass is painted with."""

    def __init__(self) -> None:
        self._endings: Endings = []

    def teach(self, looked_at: ModelView, requests: Sequence[Request]) -> list[Notice]:
        """Make a model know the words of just these files; return what there is to say of those that it cannot."""
        self.forget()
        notices: list[Notice] = []
        if any(request.lora.embeddings for request in requests):
            load_embeddings(
                looked_at,
                requests,
                lambda message, hint, span: notices.append(Notice("warning", message, hint)),
                lambda message, span: None,
                self._endings,
            )
        return notices

    def forget(self) -> None:
        """Make it know none of them."""
        end_all(self._endings)
