"""Named sets of tags, kept in text files beside the LoRAs: which there are, and writing and deleting one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fastapi import Body
from fastapi.responses import JSONResponse

from lora_runtime.errors import LoraError
from lora_runtime.panel.sets import all_sets, drop_set, keep_set

from ..library.shelf import Shelf
from ..whole import whole
from .card_routes import replace_routes

__all__ = ["add_set_routes"]

_MISSING = Body(None)


def add_set_routes(app: Any, shelf: Shelf, guards: Sequence[Any]) -> None:
    """Add the routes for the sets in a shelf's folders; a new one goes into the first folder."""

    def sets() -> Any:
        """Return the sets by name."""
        return _answer(lambda: all_sets(shelf.folders))

    def save_set(name: Any = _MISSING, text: Any = _MISSING) -> Any:
        """Write a set, in place of one of that name."""
        return _answer(lambda: keep_set(shelf.folders, name, text))

    def delete_set(name: Any = _MISSING) -> Any:
        """Delete a set."""
        return _answer(lambda: drop_set(shelf.folders, name))

    replace_routes(app, "GET", {"/lora-runtime/sets": sets}, guards)
    replace_routes(app, "POST", {"/lora-runtime/save-set": save_set, "/lora-runtime/delete-set": delete_set}, guards)


def _answer(ask: Callable[[], dict[str, Any]]) -> JSONResponse:
    """Return an answer, or why there is none."""
    try:
        return JSONResponse(whole(ask()))
    except (LoraError, OSError) as error:
        return JSONResponse({"error": whole(str(error))})
