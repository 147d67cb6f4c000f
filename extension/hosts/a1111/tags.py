"""The tags on this host: a checkpoint's own parameters show what is asked for, until something else is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from modules import shared

from lora_runtime.requests import Request

from ...engine.judging import Source
from ...engine.loading import Loader
from ...engine.session import Session
from ...prompts.notices import Notice
from ..sdwebui.settings import Settings
from ..sdwebui.tag_owner import TagOwner
from .builtin import calm_builtin
from .embeddings import BundledEmbeddings
from .models import loaded_model

__all__ = ["LoraTags"]


class LoraTags(TagOwner):
    """The owner of the tags, with the session that patches the weights."""

    def __init__(
        self,
        session: Session,
        loader: Loader,
        settings: Settings,
        presets: Callable[[], Mapping[str, str]],
        embeddings: BundledEmbeddings,
    ) -> None:
        super().__init__(loader, settings, presets)
        self.session = session
        self._embeddings = embeddings
        self._builtin_may_have_patched = False

    def show(self, p: Any, requests: Sequence[Request], source: Source) -> tuple[Sequence[Request], list[Notice]]:
        """Make the checkpoint show these; they stay on its weights until the next call."""
        model = shared.sd_model
        if self._builtin_may_have_patched:
            calm_builtin([model])
            self._builtin_may_have_patched = False
        _, notices = self.session.show(model, requests, source)
        return self.session.wanted, notices + self._show_embeddings(self.session.wanted, model)

    def show_nothing(self) -> None:
        """Give all weights back."""
        self.session.show(None, ())

    def lost_tags(self) -> None:
        """Give all weights back; from now on the built-in may patch some."""
        self.show_nothing()
        self._builtin_may_have_patched = True

    def show_again(self, model: Any) -> None:
        """Make a checkpoint that was loaded in the middle of a picture show what the one before it did."""
        self.session.show_again(model)
        self._show_embeddings(self.session.wanted, model)

    def loaded_model(self) -> Any | None:
        """Return the checkpoint that was used last."""
        return loaded_model()

    def give_up(self) -> None:
        """Give all weights back, and the words of bundled embeddings."""
        self.session.forget()
        self._embeddings.show((), loaded_model())

    def _show_embeddings(self, requests: Iterable[Request], model: Any) -> list[Notice]:
        return self._embeddings.show(requests, model, listed=self.settings.embedding_hashes_in_infotext)
