"""The routes. All answers are JSON; what is refused says why in the shape of OpenAI's errors."""

from __future__ import annotations

import asyncio
import base64
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

from lora_runtime.catalog import LoraCatalog
from lora_runtime.errors import CatalogError
from lora_runtime.lookup import files_read
from lora_runtime.prompt import parse_prompt
from lora_runtime.serve.asking import Asked, Object, check_names, read_asked, read_object, read_text
from lora_runtime.serve.counting import Counts
from lora_runtime.serve.explaining import explained, listed, placeless
from lora_runtime.serve.gate import App, Gate, send_refused
from lora_runtime.serve.limits import Limits, Refused
from lora_runtime.serve.line import Line, Paints
from lora_runtime.sweep.paint import Painted
from lora_runtime.sweep.rows import Row

__all__ = ["app_of", "make_app"]

_CLIENT_GONE = 499  # nobody reads it; the counts have it


def make_app(
    painter: Paints,
    catalog: LoraCatalog,
    *,
    model: str = "",
    limits: Limits | None = None,
    key: str | None = None,
) -> tuple[App, Line]:
    """Return an ASGI app, and the line in which its requests wait.

    `painter` paints with one pipeline, which is called `model`; `catalog` has the files that prompts may name. With
    `key` all but /health asks for it; see `checked_key`.
    """
    limits, counts = limits or Limits(), Counts()
    line = Line(painter, limits, counts.painted)
    return app_of(line, catalog, model, limits, key, counts), line


class Waits(Protocol):
    """What requests wait in: a `Line`, or what stands for one elsewhere."""

    async def __aenter__(self) -> Any:
        """Begin to take rows in."""

    async def __aexit__(self, *error: object) -> None:
        """End."""

    @property
    def waiting(self) -> int:
        """How many rows wait."""

    @property
    def in_hand(self) -> int:
        """How many rows are being painted."""

    @property
    def open(self) -> bool:
        """Whether rows are taken in."""

    async def paint(self, rows: Sequence[Row]) -> list[Painted]:
        """Return what became of the rows, in order."""


def app_of(
    line: Waits, catalog: LoraCatalog, model: str, limits: Limits, key: str | None, counts: Counts | None = None
) -> App:
    """Return an ASGI app whose requests wait in `line`."""
    counts = counts or Counts()
    counts.watch(lambda: line.waiting, lambda: line.in_hand, files_read)
    return _Routes(line, catalog, model, limits, counts).app(key)


class _Routes:
    def __init__(self, line: Waits, catalog: LoraCatalog, model: str, limits: Limits, counts: Counts) -> None:
        self._line, self._catalog, self._model = line, catalog, model
        self._limits, self._counts = limits, counts

    def app(self, key: str | None) -> App:
        """Return the app, behind its gate."""
        from starlette.applications import Starlette
        from starlette.exceptions import HTTPException
        from starlette.routing import Route

        @asynccontextmanager
        async def lifespan(app: Any) -> AsyncIterator[None]:
            async with self._line:
                yield

        routes = [
            Route("/v1/images/generations", self.generations, methods=["POST"]),
            Route("/v1/explain", self.explain, methods=["POST"]),
            Route("/v1/loras", self.loras),
            Route("/v1/models", self.models),
            Route("/health", self.health),
            Route("/metrics", self.metrics),
        ]
        handlers = {Refused: _refused, HTTPException: _http, CatalogError: _catalog, Exception: _failed}
        inner = Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)
        return Gate(inner, key, self._counts, [route.path for route in routes])

    async def generations(self, request: Any) -> Any:
        """Paint, in a batch with whoever asks at the same time."""
        given = await _object(request, self._limits)
        asked = read_asked(given, self._limits, self._model, lambda: uuid.uuid4().hex)
        try:
            painted = await _while_there(request, self._painted(asked), self._limits.timeout)
        except _Gone:
            return _answer({}, _CLIENT_GONE)
        for each in painted:
            if each.png is None:
                blamed = each.blame == "row"
                code = "cannot_be_painted" if blamed else "painting_failed"
                said = placeless(each.line["error"], self._catalog)
                raise Refused(400 if blamed else 500, said, code, "prompt" if blamed else None)
        return _answer({"created": int(time.time()), "data": [_picture(asked, each) for each in painted]})

    async def explain(self, request: Any) -> Any:
        """Say what a prompt means."""
        given = await _object(request, self._limits)
        if strange := sorted(given.keys() - {"prompt"}):
            raise Refused(400, f"unknown: {strange[0][:80]}; known is prompt", "unknown_field", strange[0][:80])
        prompt = parse_prompt(read_text(given, "prompt", self._limits))
        return _answer(await asyncio.to_thread(explained, prompt, self._catalog))

    async def loras(self, request: Any) -> Any:
        """List the files as they are now."""
        return _answer(await asyncio.to_thread(listed, self._catalog))

    async def models(self, request: Any) -> Any:
        """Say what the one model is called."""
        return _answer({"object": "list", "data": [{"id": self._model, "object": "model"}]})

    async def health(self, request: Any) -> Any:
        """Say whether pictures can be asked for."""
        there = self._line.open
        return _answer({"status": "ok" if there else "stopping"}, 200 if there else 503)

    async def metrics(self, request: Any) -> Any:
        """Tell Prometheus."""
        from starlette.responses import Response

        text, kind = self._counts.text()
        return Response(text, media_type=kind)

    async def _painted(self, asked: Asked) -> list[Painted]:
        await asyncio.to_thread(check_names, asked, self._catalog)
        return await self._line.paint(asked.rows)


class _Gone(Exception):
    """Who asked has hung up."""


async def _object(request: Any, limits: Limits) -> Object:
    """Return the JSON object that a request sends, bounded in bytes and in time."""
    from starlette.requests import ClientDisconnect

    # Also what a page in a browser must not send elsewhere without being allowed to.
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refused(415, "send JSON, with Content-Type: application/json", "bad_type")
    try:
        body = await asyncio.wait_for(_body(request, limits.max_body), limits.timeout)
    except asyncio.TimeoutError as error:  # of Python 3.10 it is no TimeoutError
        raise Refused(408, f"the body did not come within {limits.timeout} s", "slow_body") from error
    except ClientDisconnect as error:
        raise Refused(400, "the body ended too early", "bad_json") from error
    return read_object(body)


async def _body(request: Any, most: int) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise Refused(413, f"the body has more than {most} bytes", "too_large")
        parts.append(part)
    return b"".join(parts)


async def _while_there(request: Any, work: Awaitable[list[Painted]], seconds: float) -> list[Painted]:
    """Return what `work` gives. It is cancelled where it takes too long (Refused), or who asked is gone (_Gone)."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_hung_up(request))
    try:
        await asyncio.wait({task, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            raise _Gone
        raise Refused(504, f"it took more than {seconds:g} s: ask for less, or later", "timeout")
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _hung_up(request: Any) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _picture(asked: Asked, painted: Painted) -> dict[str, Any]:
    assert painted.png is not None
    line = painted.line
    said = {name: line[name] for name in ("seed", "infotext", "files", "diagnostics", "batch", "seconds")}
    encoded = base64.b64encode(painted.png).decode("ascii")
    return {"b64_json": encoded, "revised_prompt": asked.prompt.text, **said}


def _answer(content: Any, status: int = 200) -> Any:
    from starlette.responses import Response

    return Response(json.dumps(content), status, media_type="application/json")  # ASCII: any text can be sent so


async def _refused(request: Any, refused: Exception) -> Any:
    assert isinstance(refused, Refused)
    return _Sent(refused)


async def _http(request: Any, error: Any) -> Any:
    codes = {404: "not_found", 405: "bad_method"}
    return _Sent(Refused(error.status_code, error.detail, codes.get(error.status_code, "http_error")))


async def _catalog(request: Any, error: Exception) -> Any:
    return _Sent(Refused(500, str(error), "no_folder"))


async def _failed(request: Any, error: Exception) -> Any:
    return _Sent(Refused(500, "the server has failed; its log says how", "server_error"))


class _Sent:
    """An answer that says why there is none."""

    def __init__(self, refused: Refused) -> None:
        self._refused = refused

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send_refused(self._refused, send)
