"""Prompts encoded by text encoders that show each prompt's own LoRAs.

The WebUI encodes equal texts once, whatever tags stood in them, and all with the same weights. Where the pictures of a
batch ask for different LoRAs, each is encoded on its own here, through the WebUI's own function; what comes of it is
put together, and kept by the WebUI as ever: the key that it keeps it by holds what all pictures ask for.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from modules import processing, prompt_parser

from lora_runtime.stage import Row, Side

from ...engine.per_prompt import differs, of_text
from ...engine.session import Session
from ...engine.shown import identity
from ...prompts.notices import Notice


class PromptEncoding:
    """The wrapper of the one method that encodes, for as long as the extension is loaded."""

    def __init__(
        self, session: Session, is_shown_for: Callable[[Any], bool], say: Callable[[Any, list[Notice]], None]
    ) -> None:
        """Encode with `session`; `is_shown_for` says whether what it shows is what a job asked for, `say` tells it."""
        self._session = session
        self._say = say
        self._is_shown_for = is_shown_for
        self._active = False
        self._original: Callable[..., Any] | None = None
        self._ours: Callable[..., Any] | None = None

    def install(self) -> None:
        """Wrap the method."""
        self._original = processing.StableDiffusionProcessing.get_conds_with_caching
        self._ours = processing.StableDiffusionProcessing.get_conds_with_caching = self._around(self._original)
        self._active = True

    def remove(self) -> None:
        """Give the method back; where another extension has wrapped ours since, ours stays and does nothing."""
        self._active = False
        if processing.StableDiffusionProcessing.get_conds_with_caching is self._ours:
            processing.StableDiffusionProcessing.get_conds_with_caching = self._original

    def _around(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def get_conds_with_caching(p: Any, function: Any, required_prompts: Any, *args: Any, **kwargs: Any) -> Any:
            if self._active and self._is_shown_for(p) and differs(self._session.wanted):
                function = self._apart(p, function)
            return original(p, function, required_prompts, *args, **kwargs)

        return get_conds_with_caching

    def _apart(self, p: Any, encode: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that encodes as the WebUI's does, but each prompt with its own weights."""

        def encode_apart(model: Any, prompts: Any, *args: Any) -> Any:
            side: Side = "negative" if getattr(prompts, "is_negative_prompt", False) else "positive"
            known: dict[Any, Any] = {}
            found = []
            try:
                for image, text in enumerate(prompts):
                    # Only prompts have parts: in a negative prompt AND is a word.
                    parts = prompt_parser.re_AND.split(text) if side == "positive" and self._has_parts() else [text]
                    encoded = []
                    for part, words in enumerate(parts):
                        row = Row(image, side, part)
                        key = words, identity(of_text(self._session.wanted, row))
                        if key not in known:
                            self._say(p, self._session.encode_for(model, row))
                            known[key] = encode(model, prompt_parser.SdConditioning([words], copy_from=prompts), *args)
                        encoded.append(known[key])
                    found.append(encoded)
            finally:
                self._session.show_again(model)
            if side == "negative":
                return [schedules for [one] in found for schedules in one]
            batch = [[part for one in parts for part in one.batch[0]] for parts in found]
            return prompt_parser.MulticondLearnedConditioning(shape=(len(batch),), batch=batch)

        return encode_apart

    def _has_parts(self) -> bool:
        return any(request.conditions.part is not None for request in self._session.wanted)
