"""What javascript/lora_runtime.js fetches: more cards, the folders and the files of one, pictures out of metadata."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastapi import Query
from fastapi.responses import JSONResponse, Response

from .cards import nothing_found_html

__all__ = ["add_card_routes", "replace_routes"]

_TABS = ("txt2img", "img2img")
_SORTS = ("default", "name", "date_created", "date_modified", "date_used")
_MAX_CARDS = 300


def replace_routes(app: Any, method: str, routes: Mapping[str, Callable[..., Any]], guards: Sequence[Any]) -> None:
    """Add functions at these paths, in place of whatever answers there: the built-in, or we before a Reload UI.

    `guards` are the dependencies that say who may call them.
    """
    app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", None) not in routes]
    for path, function in routes.items():
        app.add_api_route(path, function, methods=[method], dependencies=list(guards))


def add_card_routes(app: Any, page: Any, guards: Sequence[Any]) -> None:
    """Add the routes for a LoraPage."""
    # Plain functions, not coroutines: FastAPI runs these in threads, so that a slow disk does not stop the UI.

    def cards(
        tabname: str = Query(_TABS[0], max_length=20),
        q: str = Query("", max_length=1000),
        folder: str = Query("", max_length=4000),
        sort: str = Query("default", max_length=20),
        dir: str = Query("Ascending", max_length=20),
        offset: int = Query(0, ge=0),
        limit: int = Query(60, ge=1, le=_MAX_CARDS),
        families: str = Query("", max_length=1000),
        fits: bool = False,
        favourites: bool = False,
    ) -> Any:
        """Return some of the cards that a search finds, and how many it finds; first how many each family has, too.

        `families` are those that count, with "|" between them.
        """
        chosen = [name for name in families.split("|") if name]
        names = page.search(
            q,
            folder=folder,
            sort=sort if sort in _SORTS else "default",
            descending=dir == "Descending",
            families=chosen,
            fits=fits,
            favourites=favourites,
        )
        part = names[offset : offset + limit]
        answer = {"total": len(names), "shown": offset + len(part), "html": page.cards_html(_tab(tabname), part)}
        if not names:
            searched = q.strip() or folder or chosen or fits or favourites
            answer["html"] = nothing_found_html(q, folder) if searched else page.nothing_html()
        if not offset:
            answer["families"] = page.families()
        if offset + len(part) >= len(names):
            answer["note"] = page.refused_html()
        return JSONResponse(answer)

    def card(tabname: str = Query(_TABS[0], max_length=20), name: str = Query(..., max_length=4000)) -> Any:
        """Return one card as it is now."""
        return JSONResponse({"html": page.cards_html(_tab(tabname), [name])})

    def folders(tabname: str = Query(_TABS[0], max_length=20)) -> Any:
        """Return the folders beside the cards as they are now."""
        return JSONResponse({"html": page.folders_html(_tab(tabname))})

    def files(tabname: str = Query(_TABS[0], max_length=20), folder: str = Query(..., max_length=4000)) -> Any:
        """Return the files of one folder of the tree."""
        return JSONResponse({"html": page.tree_files_html(_tab(tabname), folder)})

    def cover(name: str = Query(..., max_length=4000)) -> Any:
        """Return a picture from a file's metadata."""
        found = page.cover(name)
        if found is None:
            return Response(status_code=404)
        data, media_type = found
        headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "private, max-age=86400"}
        return Response(content=data, media_type=media_type, headers=headers)

    routes: dict[str, Callable[..., Any]] = {
        "/lora-runtime/cards": cards,
        "/lora-runtime/card": card,
        "/lora-runtime/folders": folders,
        "/lora-runtime/files": files,
        "/lora-runtime/cover": cover,
    }
    replace_routes(app, "GET", routes, guards)


def _tab(given: str) -> str:
    """Return a tab of the WebUI: the name goes into the cards' buttons."""
    return given if given in _TABS else _TABS[0]
