"""What the stack panel beside the prompt asks for, at the page's own address and behind the page's own login."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from fastapi import APIRouter, Body, Depends, FastAPI, HTTPException, Response

from lora_runtime import panel
from lora_runtime.panel import Library
from lora_runtime.studio.faults import StudioError

__all__ = ["BASE", "add_panel"]

BASE = "lora-runtime"  # below the page's address
_LONGEST = 20_000  # characters of a prompt
_ANYTHING = Body(None)
_FOR_EVER = "private, max-age=31536000, immutable"


def add_panel(app: FastAPI, library: Library, blocks: Callable[[], Sequence[str]]) -> None:
    """Add the panel's routes to gradio's app; `blocks` gives those of the model that is loaded."""
    routes = APIRouter(prefix=f"/{BASE}", dependencies=[Depends(login_of(app))])

    # Plain functions, not coroutines: they run in threads, so that a slow disk does not stop the page.
    def tags(prompt: str = Body(embed=True)) -> Response:
        return _answer(panel.tags(_short(prompt), library, blocks=blocks()))

    def edit(prompt: str = Body(), tag: int = Body(), field: str = Body(), value: Any = _ANYTHING) -> Response:
        return _answer(panel.edit(_short(prompt), tag, field, value))

    def complete(prompt: str = Body(), cursor: int = Body()) -> Response:
        return _answer(panel.complete(_short(prompt), cursor, library, blocks=blocks()))

    def web(digest: str, name: str) -> Response:
        found = panel.web_file(digest, name)
        if found is None:
            return Response(status_code=404)
        content, media_type = found
        headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": _FOR_EVER}
        return Response(content=content, media_type=media_type, headers=headers)

    for path, answer in (("/tags", tags), ("/edit", edit), ("/complete", complete)):
        routes.add_api_route(path, answer, methods=["POST"])
    routes.add_api_route("/web/{digest}/{name}", web, methods=["GET"])
    app.include_router(routes)


def _short(prompt: str) -> str:
    if len(prompt) > _LONGEST:
        raise HTTPException(422, f"a prompt has at most {_LONGEST:,} characters")
    return prompt


def _answer(content: dict[str, Any]) -> Response:
    """Return what a function of the panel says. In ASCII: half of a character in a text can be sent so too."""
    return Response(json.dumps(content), media_type="application/json")


def login_of(app: FastAPI) -> Callable[..., Any]:
    """Return gradio's own question whether somebody is logged in; StudioError where this gradio has none."""
    pending = list(app.routes)
    while pending:
        route = pending.pop()
        if str(getattr(route, "path", "")).endswith("/login_check"):
            found: Callable[..., Any] = route.endpoint
            return found
        pending += getattr(getattr(route, "original_router", None), "routes", ())
    raise StudioError("this version of gradio keeps its logins elsewhere: install one that pyproject.toml names")
