"""What the stack panel asks for, answered for the files of a shelf and the checkpoint that is loaded."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from lora_runtime import panel
from lora_runtime.catalog import Entry
from lora_runtime.panel import PanelFile, PromptFacts
from lora_runtime.panel.sidecars import words_of
from lora_runtime.workbench.conflicts import conflicts_of

from ..library.patience import Patience
from ..library.shelf import Shelf
from ..whole import whole
from .card_routes import replace_routes
from .report_route import ReportOn

__all__ = ["ShelfLibrary", "add_stack_routes"]

_SECONDS_A_LOOK_LASTS = 10.0


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
    app: Any, shelf: Shelf, page: Any, facts: Callable[[], PromptFacts], report_on: ReportOn, guards: Sequence[Any]
) -> None:
    """Add the panel's routes; `page` shows the cards of `shelf`, and `facts` says how prompts are read now."""

    def conflicts(prompt: str) -> dict[str, Any]:
        _, found, notices = report_on(whole(prompt))
        return conflicts_of(found, [str(notice) for notice in notices])

    questions = panel.Questions(lambda: ShelfLibrary(shelf, page), facts, lambda: shelf.folders, conflicts)
    for method, path, answer in panel.endpoints(questions):
        replace_routes(app, method, {f"/lora-runtime/{path}": answer}, guards)
