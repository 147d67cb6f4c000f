"""The panel's questions as functions for FastAPI: a host adds them at its own address, behind its own login."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from lora_runtime.panel.questions import Questions
from lora_runtime.panel.served import WEB_HEADERS, web_file, web_hash

__all__ = ["endpoints"]


def endpoints(questions: Questions) -> Iterator[tuple[str, str, Callable[..., Any]]]:
    """Yield method, path below the base, and function of each question.

    Plain functions and not coroutines: FastAPI runs these in threads, so that a slow disk does not stop the page.
    """
    from fastapi import Body, Header, Response

    anything, kind = Body(None), Header("")

    def answered(status: int, table: dict[str, Any], **headers: str) -> Response:
        # In ASCII: half of a character, which a file name or a text that was cut may have, can be sent so too.
        return Response(json.dumps(table), status, headers=headers, media_type="application/json")

    def posted(name: str) -> Callable[..., Any]:
        # Of any type: of half a character in a text pydantic 2 makes a refusal that cannot be sent.
        def ask(body: Any = anything, content_type: str = kind) -> Any:
            # A page of another site may have a browser send anything but this.
            if content_type.partition(";")[0].strip().lower() != "application/json":
                return answered(415, {"detail": "send JSON, with Content-Type: application/json"})
            return answered(*questions.answer(name, body))

        return ask

    def fetched(name: str) -> Callable[..., Any]:
        def ask() -> Any:
            return answered(*questions.answer(name))

        return ask

    def mask(name: str = "") -> Any:
        found = questions.mask(name)
        if found is None:
            return Response(status_code=404)
        headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}
        return Response(found, headers=headers, media_type="image/png")

    def web() -> Any:
        return answered(200, {"hash": web_hash()}, **{"Cache-Control": "no-store"})

    def module(digest: str, name: str) -> Any:
        found = web_file(digest, name)
        if found is None:
            return Response(status_code=404)
        return Response(found[0], headers=dict(WEB_HEADERS), media_type=found[1])

    yield from (("POST", name, posted(name)) for name in questions.posted)
    yield from (("GET", name, fetched(name)) for name in questions.fetched)
    yield "GET", "mask", mask
    yield "GET", "web", web
    yield "GET", "web/{digest}/{name}", module
