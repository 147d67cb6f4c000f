"""What the stack panel beside the prompt asks for, at the page's own address and behind the page's own login."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Depends, FastAPI

from lora_runtime.panel import Questions, endpoints
from lora_runtime.studio.faults import StudioError

__all__ = ["BASE", "add_panel"]

BASE = "lora-runtime"  # below the page's address


def add_panel(app: FastAPI, questions: Questions) -> None:
    """Add the panel's routes to gradio's app."""
    routes = APIRouter(prefix=f"/{BASE}", dependencies=[Depends(login_of(app))])
    for method, path, answer in endpoints(questions):
        routes.add_api_route(f"/{path}", answer, methods=[method])
    app.include_router(routes)


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
