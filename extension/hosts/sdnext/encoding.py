"""Prompts encoded by text encoders that show each prompt's own LoRAs.

SD.Next encodes the prompts of a batch one by one, each with its negative prompt, and equal texts once. Where the
pictures ask for different LoRAs, the text encoders show before each what that picture asks for. With prompt attention
"fixed", and on models that it has no parser for, the pipeline encodes them together, and no `PromptEmbedder` is made.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from modules.prompt_parser_diffusers import PromptEmbedder

from lora_runtime.stage import Row

from ...engine.per_prompt import differs
from ...engine.session import Session
from ...prompts.notices import Notice
from .models import Checkpoints


class PromptEncoding:
    """The wrappers of the methods that encode, for as long as the extension is loaded."""

    def __init__(
        self,
        session: Session,
        checkpoints: Checkpoints,
        say: Callable[[list[Notice]], None],
        done: Callable[[], None],
    ) -> None:
        """Encode with what `session` shows on the checkpoint that is loaded.

        `say` tells the job that is running; `done` is called when the prompts of a batch have been encoded one by one.
        """
        self._session, self._checkpoints, self._say, self._done = session, checkpoints, say, done
        self._originals: dict[str, Callable[..., Any]] = {}
        self._ours: dict[str, Callable[..., Any]] = {}
        self._active = False

    def install(self) -> None:
        """Wrap the methods."""
        for name, wrapper in (("__init__", self._all), ("encode", self._encode), ("clone_embeds", self._clone)):
            self._originals[name] = getattr(PromptEmbedder, name)
            self._ours[name] = wrapper(self._originals[name])
            setattr(PromptEmbedder, name, self._ours[name])
        self._active = True

    def remove(self) -> None:
        """Give the methods back; where another extension has wrapped ours since, ours stays and does nothing."""
        self._active = False
        for name, ours in self._ours.items():
            if getattr(PromptEmbedder, name) is ours:
                setattr(PromptEmbedder, name, self._originals[name])

    def _apart(self) -> bool:
        return self._active and differs(self._session.wanted)

    def _all(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def encode_all(embedder: Any, *args: Any, **kwargs: Any) -> None:
            original(embedder, *args, **kwargs)
            self._done()

        return encode_all

    def _encode(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def encode(embedder: Any, pipe: Any, positive_prompt: Any, negative_prompt: Any, batchidx: int) -> Any:
            checkpoint = self._checkpoints.loaded() if self._apart() else None
            if checkpoint is None:
                return original(embedder, pipe, positive_prompt, negative_prompt, batchidx)
            try:
                self._say(self._session.encode_for(checkpoint, Row(batchidx)))
                return original(embedder, pipe, positive_prompt, negative_prompt, batchidx)
            finally:
                self._session.show_again(checkpoint)

        return encode

    def _clone(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def clone_embeds(embedder: Any, batchidx: int, idx: int) -> Any:
            if not self._apart():
                return original(embedder, batchidx, idx)
            if embedder.scheduled_prompt:
                return embedder.scheduled_encode(embedder.pipe, batchidx)
            return embedder.encode(
                embedder.pipe, embedder.prompts[batchidx], embedder.negative_prompts[batchidx], batchidx
            )

        return clone_embeds
