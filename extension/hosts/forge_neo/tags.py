"""The tags on this host: patches on clones of the host's patchers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lora_runtime.requests import Request

from ...engine.judging import Source
from ...engine.loading import Loader
from ...engine.models import Models
from ...engine.session import Session
from ...prompts.notices import Notice
from ..sdwebui.settings import Settings
from ..sdwebui.tag_owner import TagOwner
from .embeddings import BundledEmbeddings
from .models import loaded_model
from .weights import Weights

__all__ = ["LoraTags"]


class LoraTags(TagOwner):
    """The owner of the tags, with the session that asks the host for patched weights."""

    def __init__(
        self,
        session: Session,
        weights: Weights,
        models: Models,
        loader: Loader,
        settings: Settings,
        presets: Callable[[], Mapping[str, str]],
        embeddings: BundledEmbeddings,
    ) -> None:
        super().__init__(loader, settings, presets)
        self.session, self.models, self._weights = session, models, weights
        self._embeddings = embeddings

    def show(self, p: Any, requests: Sequence[Request], source: Source) -> tuple[Sequence[Request], list[Notice]]:
        """Make the checkpoint show these; the host loads its weights when it needs them next."""
        model = loaded_model()
        if model is None:
            return (), [Notice("error", "no LoRA is applied: no checkpoint is loaded")] if requests else []
        _, notices = self.session.show(model, requests, source)
        return self.session.wanted, notices + self._embeddings.show(self.session.wanted, model)

    def show_nothing(self) -> None:
        """Give the checkpoint its own patchers back."""
        self.session.show(None, ())
        self._embeddings.show((), loaded_model())

    def deactivate(self, p: Any) -> None:
        """Say what went wrong while the host loaded the weights: it is the end of a job."""
        self.say(p, [Notice("error", message) for message in self._weights.failures()])

    def loaded_model(self) -> Any | None:
        """Return the checkpoint that is loaded."""
        return loaded_model()

    def give_up(self) -> None:
        """Give the checkpoint its own patchers back, and the words of bundled embeddings; want nothing any more."""
        self.session.forget()
        self._embeddings.show((), loaded_model())
