"""Asks an ASGI app, and paints without a model: for tests of a server that need no network."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lora_runtime.batching.halving import Stopped
from lora_runtime.sweep.manifest import line_of
from lora_runtime.sweep.paint import Painted
from lora_runtime.sweep.rows import Row

PAINT = "/v1/images/generations"


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        return self.json["error"]


class Client:
    """`async with Client(app, line) as client` starts the app and stops it."""

    def __init__(self, app: Any, line: Any, **headers: str) -> None:
        self._app, self.line = app, line
        self._headers = {"host": "localhost:8000", **headers}
        self._told: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._said: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def __aenter__(self) -> Client:
        self._life = asyncio.create_task(self._app({"type": "lifespan"}, self._told.get, self._said.put))
        await self._told.put({"type": "lifespan.startup"})
        assert (await self._said.get())["type"] == "lifespan.startup.complete"
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._told.put({"type": "lifespan.shutdown"})
        assert (await self._said.get())["type"] == "lifespan.shutdown.complete"
        await self._life

    async def post(self, path: str = PAINT, hang_up: asyncio.Event | None = None, **content: Any) -> Answer:
        """Send JSON; `hang_up` is when the connection is closed by this side."""
        return await self.send("POST", path, json.dumps(content).encode(), hang_up=hang_up)

    async def get(self, path: str) -> Answer:
        return await self.send("GET", path)

    async def send(
        self, method: str, path: str, body: bytes = b"", *, hang_up: asyncio.Event | None = None, **headers: str
    ) -> Answer:
        """Send any bytes."""
        given = {**self._headers, "content_type": "application/json", **headers}
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "scheme": "http",
            "headers": [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in given.items()],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8000),
        }
        pending = [{"type": "http.request", "body": body, "more_body": False}]
        over, sent = hang_up or asyncio.Event(), []

        async def receive() -> dict[str, Any]:
            if pending:
                return pending.pop()
            await over.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await self._app(scope, receive, send)
        start, *rest = sent
        names = {name.decode(): value.decode() for name, value in start["headers"]}
        return Answer(start["status"], names, b"".join(part.get("body", b"") for part in rest))


@dataclass
class Easel:
    """Paints a row as its prompt's bytes; a batch takes until `free` is set, or nobody waits for it any more."""

    free: threading.Event = field(default_factory=threading.Event)
    batches: list[list[str]] = field(default_factory=list)
    stopped: list[list[str]] = field(default_factory=list)
    began: Callable[[], None] = lambda: None
    failing: BaseException | None = None

    def paint(self, rows: Sequence[Row], stopped: Callable[[], bool] | None = None) -> list[Painted]:
        prompts = [row.prompt for row in rows]
        self.batches.append(prompts)
        self.began()
        while not self.free.wait(0.005):
            if stopped is not None and stopped():
                self.stopped.append(prompts)
                raise Stopped
        if self.failing is not None:
            raise self.failing
        return [self._painted(row, len(rows)) for row in rows]

    def _painted(self, row: Row, batch: int) -> Painted:
        for blame in ("row", "worker"):
            if f"{blame}'s fault" in row.prompt:
                return Painted(None, line_of(row, error=f"it is the {blame}'s"), blame)  # type: ignore[arg-type]
        more = {"infotext": f"Seed: {row.seed}", "files": {}, "diagnostics": [], "batch": batch, "seconds": 0.1}
        return Painted(row.prompt.encode(), line_of(row, **more))
