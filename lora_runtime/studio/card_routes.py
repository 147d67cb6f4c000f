"""What the cards of the page ask for beside gradio: a film, and a star; behind the page's own login."""

from __future__ import annotations

import json
from typing import Any

from fastapi import APIRouter, Body, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import FileResponse

from lora_runtime.catalog import LoraCatalog
from lora_runtime.errors import LoraError
from lora_runtime.panel.marks import Marks
from lora_runtime.panel.origin import foreign
from lora_runtime.panel.sidecars import FILMS, film_beside
from lora_runtime.studio.panel_routes import BASE, login_of

__all__ = ["add_cards"]

_LONGEST = 4000  # characters of a name


def add_cards(app: FastAPI, catalog: LoraCatalog, marks: Marks) -> None:
    """Add the routes to gradio's app. Files are asked for by the names that tags have for them, never by paths."""
    routes = APIRouter(prefix=f"/{BASE}", dependencies=[Depends(login_of(app))])

    # Plain functions, not coroutines: they run in threads, so that a slow disk does not stop the page.
    def film(name: str = Query(max_length=_LONGEST)) -> Response:
        try:
            found = film_beside(catalog.resolve(name, look_again=False, suggest=False).path)
        except LoraError:
            found = None
        if found is None:
            return Response(status_code=404)
        headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "private, max-age=3600"}
        return FileResponse(found, media_type=FILMS[found.suffix[1:]], headers=headers)

    def star(name: str = Body(max_length=_LONGEST), on: bool = Body()) -> Response:
        try:
            entry = catalog.resolve(name, suggest=False)
            marks.star(entry.path, catalog.hashes(entry).sha256, on)
        except (LoraError, OSError) as error:
            return _answer({"error": str(error)})
        return _answer({"favourite": on})

    routes.add_api_route("/film", film, methods=["GET"])
    routes.add_api_route("/star", star, methods=["POST"], dependencies=[Depends(_of_this_page)])
    app.include_router(routes)


def _of_this_page(request: Request) -> None:
    if why := foreign(request.headers):
        raise HTTPException(403, f"nothing was changed: {why}")


def _answer(content: dict[str, Any]) -> Response:
    return Response(json.dumps(content), media_type="application/json")
