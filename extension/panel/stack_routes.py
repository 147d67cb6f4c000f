"""What the stack panel asks for: rows of a prompt, changes of a tag, completions, and the panel's own modules."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import Body
from fastapi.responses import JSONResponse, Response

from lora_runtime import panel
from lora_runtime.catalog import Entry
from lora_runtime.panel import PanelFile
from lora_runtime.panel.sidecars import words_of
from lora_runtime.prompt.tags import Scope

from ..library.patience import Patience
from ..library.shelf import Shelf
from ..whole import whole
from .card_routes import replace_routes

__all__ = ["PromptFacts", "ShelfLibrary", "add_stack_routes"]

# FastAPI has 40 threads for all routes of the program: a prompt that is being typed must not take all of them.
_AT_ONCE = 4
_SECONDS_IN_LINE = 2.0
_LONGEST = 100_000
_SECONDS_A_LOOK_LASTS = 10.0
_FOR_EVER = "private, max-age=31536000, immutable"
_MISSING = Body(None)
_HALF = re.compile("[\ud800-\udfff]")  # of a character: one sign for one, so that spans stay as the browser counts


@dataclass(frozen=True)
class PromptFacts:
    """How prompts are read now: block weights by name, the scope of tags, and the blocks of the loaded model."""

    presets: Mapping[str, str]
    scope: Scope
    blocks: Sequence[str]


class ShelfLibrary:
    """The files of a shelf as its page shows them, for one question."""

    def __init__(self, shelf: Shelf, page: Any) -> None:
        self._shelf, self._page = shelf, page
        # Folders that were looked at a moment ago are good enough, and nobody waits for hashes: each key asks this.
        self._patience = Patience(time.monotonic() - _SECONDS_A_LOOK_LASTS, seconds_to_hash=0.0, suggestions=3)

    def find(self, name: str) -> PanelFile:
        """Return the file that a tag means; raises what `Shelf.find` does."""
        entry, remark = self._shelf.find(name, self._patience)
        return self._file(entry, remark)

    def search(self, words: str, limit: int) -> list[PanelFile]:
        """Return what the page's search finds, in its order."""
        entries = map(self._shelf.entry, self._page.search(words)[:limit])
        return [self._file(entry) for entry in entries if entry is not None]

    def _file(self, entry: Entry, remark: str = "") -> PanelFile:
        card = self._page.card(entry)
        noted = [word.strip() for word in card.activation_text.split(",")]
        words = dict.fromkeys(filter(None, noted)) or words_of(entry)
        return PanelFile(
            name=card.tag_name,
            title=card.name,
            place=card.place,
            picture=card.preview,
            family=card.family,
            fit=card.coverage,
            misfit=card.other_family,
            weight=card.weight,
            words=tuple(words),
            remark=remark,
        )


def add_stack_routes(
    app: Any, shelf: Shelf, page: Any, facts: Callable[[], PromptFacts], guards: Sequence[Any]
) -> None:
    """Add the panel's routes; `page` shows the cards of `shelf`, and `facts` says how prompts are read now."""
    asking = threading.BoundedSemaphore(_AT_ONCE)

    # Plain functions, not coroutines: FastAPI runs these in threads, so that a slow disk does not stop the UI.
    def tags(prompt: Any = _MISSING) -> Any:
        """Return the rows of a prompt."""

        def answer(text: str) -> dict[str, Any]:
            now = facts()
            library = ShelfLibrary(shelf, page)
            return panel.tags(text, library, presets=now.presets, blocks=now.blocks, scope=now.scope)

        return _in_turn(asking, prompt, answer)

    def edit(prompt: Any = _MISSING, tag: Any = _MISSING, field: Any = _MISSING, value: Any = _MISSING) -> Any:
        """Return one text, and the span of the prompt in whose place it stands after a change of one tag."""
        if not _is_number(tag) or not isinstance(field, str):
            return _refused("tag is the number of a tag and field the name of what changes")

        def answer(text: str) -> dict[str, Any]:
            now = facts()
            return panel.edit(text, tag, whole(field), whole(value), presets=now.presets, scope=now.scope)

        return _in_turn(asking, prompt, answer)

    def complete(prompt: Any = _MISSING, cursor: Any = _MISSING) -> Any:
        """Return what may stand at the cursor."""
        if not _is_number(cursor):
            return _refused("cursor is a place in the prompt")

        def answer(text: str) -> dict[str, Any]:
            now = facts()
            library = ShelfLibrary(shelf, page)
            return panel.complete(text, cursor, library, presets=now.presets, blocks=now.blocks)

        return _in_turn(asking, prompt, answer)

    def web() -> Any:
        """Return where the panel's modules are."""
        return JSONResponse({"hash": panel.web_hash()}, headers={"Cache-Control": "no-store"})

    def web_file(digest: str, name: str) -> Any:
        """Return one of the panel's modules, or its style sheet."""
        found = panel.web_file(digest, name)
        if found is None:
            return Response(status_code=404)
        content, media_type = found
        headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": _FOR_EVER}
        return Response(content=content, media_type=media_type, headers=headers)

    asked: dict[str, Callable[..., Any]] = {
        "/lora-runtime/tags": tags,
        "/lora-runtime/edit": edit,
        "/lora-runtime/complete": complete,
    }
    fetched: dict[str, Callable[..., Any]] = {
        "/lora-runtime/web": web,
        "/lora-runtime/web/{digest}/{name}": web_file,
    }
    replace_routes(app, "POST", asked, guards)
    replace_routes(app, "GET", fetched, guards)


def _in_turn(turns: threading.BoundedSemaphore, prompt: Any, answer: Callable[[str], dict[str, Any]]) -> JSONResponse:
    """Return the answer for a prompt, or that it is none, or that others are first."""
    if not isinstance(prompt, str) or len(prompt) > _LONGEST:
        return _refused(f"prompt: a text of at most {_LONGEST:,} characters is expected")
    if not turns.acquire(timeout=_SECONDS_IN_LINE):
        return JSONResponse({"detail": "other prompts are being read; ask again"}, status_code=503)
    try:
        return JSONResponse(whole(answer(_HALF.sub("\ufffd", prompt))))
    finally:
        turns.release()


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _refused(why: str) -> JSONResponse:
    return JSONResponse({"detail": why}, status_code=422)
