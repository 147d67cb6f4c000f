"""What the cards ask for of a file: all there is to know of it, its film, its star, and another name or place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import Body, Header, Query
from fastapi.responses import JSONResponse, Response

from lora_runtime.errors import LoraError

from ..whole import whole
from .card_routes import replace_routes
from .films import film_response
from .guards import Guards

__all__ = ["add_file_routes"]

_MISSING = Body(None)
_LONGEST = 4000


def add_file_routes(app: Any, page: Any, guards: Guards) -> None:
    """Add the routes for a LoraPage; those that change something are asked by the page itself alone."""
    # Plain functions, not coroutines: FastAPI runs these in threads, so that a slow disk does not stop the UI.

    def details(name: str = Query(..., max_length=_LONGEST)) -> Any:
        """Return what there is to know of a file."""
        found = page.details(name)
        if found is None:
            return JSONResponse({"error": f'there is no LoRA "{whole(name)}" any more; refresh the page'})
        return JSONResponse(whole(found))

    def film(name: str = Query(..., max_length=_LONGEST), range: str = Header("", max_length=200)) -> Any:
        """Return the film beside a file, or a part of it."""
        found = page.film(name)
        if found is None:
            return Response(status_code=404)
        path, media_type = found
        return film_response(path, media_type, range)

    def bin_() -> Any:
        """Return what is in the bins."""
        return JSONResponse(whole({"bin": page.filing.bin(), "allowed": page.filing.allowed()}))

    def star(name: Any = _MISSING, on: Any = _MISSING) -> Any:
        """Make a file a favourite, or no more."""
        if not isinstance(name, str) or not isinstance(on, bool):
            return JSONResponse({"detail": "name is that of a card, and on whether it is a favourite"}, status_code=422)
        return _answer(lambda: page.star(name, on))

    def file(name: Any = _MISSING, action: Any = _MISSING, to: Any = _MISSING, token: Any = _MISSING) -> Any:
        """Rename a file, move it, put it into the bin, or take it out again."""
        return _answer(lambda: page.filing.do(action, {"name": name, "to": to, "token": token}))

    fetched: dict[str, Callable[..., Any]] = {
        "/lora-runtime/details": details,
        "/lora-runtime/film": film,
        "/lora-runtime/bin": bin_,
    }
    asked: dict[str, Callable[..., Any]] = {"/lora-runtime/star": star, "/lora-runtime/file": file}
    replace_routes(app, "GET", fetched, guards.page)
    replace_routes(app, "POST", asked, guards.writing)


def _answer(ask: Callable[[], dict[str, Any]]) -> JSONResponse:
    """Return an answer, or why nothing was done."""
    try:
        return JSONResponse(whole(ask()))
    except (LoraError, OSError) as error:
        return JSONResponse({"error": whole(str(error))})
