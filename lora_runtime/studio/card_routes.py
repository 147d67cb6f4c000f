"""What the cards of the page ask for, beside gradio and behind the page's own login."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import FileResponse

from lora_runtime.errors import LoraError
from lora_runtime.panel.card_endpoints import card_endpoints
from lora_runtime.panel.origin import foreign
from lora_runtime.panel.patterns import patterns_of
from lora_runtime.studio.gallery import Gallery
from lora_runtime.studio.panel_routes import BASE, login_of
from lora_runtime.studio.shelf import Wanted
from lora_runtime.studio.thumbnails import thumbnail

__all__ = ["add_cards"]

_LONGEST = 4000  # characters of a name
_LONGEST_WISH = 1000
_MOST_CARDS = 300  # at once
_KEPT = "private, max-age=86400"
_MEDIA = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}


def add_cards(app: FastAPI, gallery: Gallery) -> None:
    """Add the routes to gradio's app. Files are asked for by the names of their cards, never by paths."""
    routes = APIRouter(prefix=f"/{BASE}", dependencies=[Depends(login_of(app))])

    # Plain functions, not coroutines: they run in threads, so that a slow disk does not stop the page.
    def cards(
        q: str = Query("", max_length=_LONGEST_WISH),
        folder: str = Query("", max_length=_LONGEST),
        families: str = Query("", max_length=_LONGEST_WISH),
        model: str = Query("", max_length=_LONGEST),
        fits: bool = False,
        favourites: bool = False,
        recent: bool = False,
        hide: str = Query("", max_length=_LONGEST_WISH),
        blur: str = Query("", max_length=_LONGEST_WISH),
        at: str = Query("", max_length=_LONGEST),
        offset: int = Query(0, ge=0),
        limit: int = Query(60, ge=1, le=_MOST_CARDS),
    ) -> Response:
        """Return some of the cards that are asked for, and how many there are.

        The first ones come with how many files each family and folder has, and with the files that cannot be used.
        `families` are those that count, with "|" between them; `hide` and `blur` have patterns with commas between;
        `at` is the name of a card whose place is asked.
        """
        hidden = patterns_of(hide)
        wanted = Wanted(q, folder, families.split("|") if families else (), favourites, hidden, recent)
        part: dict[str, Any] = {"model": model, "fits": fits, "blurred": patterns_of(blur), "at": at}
        try:
            if offset:
                return _answer(asdict(gallery.find(wanted, **part, offset=offset, limit=limit)))
            gallery.refresh()
            answer = asdict(gallery.find(wanted, **part, limit=limit))
            answer |= {"families": gallery.families(hidden), "folders": gallery.folders(hidden)}
            answer["refused"], answer["reasons"] = gallery.refused()
        except LoraError as error:  # a folder is gone
            return _answer({"error": str(error)})
        return _answer(answer)

    def picture(name: str = Query(max_length=_LONGEST), large: bool = False) -> Response:
        """Return the picture beside a file, small, or as `large` as it is; without one that in its metadata."""
        headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": _KEPT}
        found = gallery.picture(name)
        if found is not None:
            if large:
                return FileResponse(found, media_type=_MEDIA[found.suffix], headers=headers)
            if data := thumbnail(found):
                return Response(data, media_type="image/webp", headers=headers)
        elif (cover := gallery.cover(name)) is not None:
            return Response(cover[0], media_type=cover[1], headers=headers)
        return Response(status_code=404)

    routes.add_api_route("/cards", cards, methods=["GET"])
    routes.add_api_route("/picture", picture, methods=["GET"])
    for method, path, answer, writes in card_endpoints(gallery):
        guards = [Depends(_of_this_page)] if writes else []
        routes.add_api_route(f"/{path}", answer, methods=[method], dependencies=guards)
    app.include_router(routes)


def _of_this_page(request: Request) -> None:
    if why := foreign(request.headers):
        raise HTTPException(403, f"nothing was changed: {why}")


def _answer(content: dict[str, Any]) -> Response:
    # In ASCII: half of a character, which a file name may have, can be sent so too.
    return Response(json.dumps(content), media_type="application/json")
