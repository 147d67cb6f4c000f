"""Who may ask at all: the key, or without one only whoever means this machine; and each answer is counted."""

from __future__ import annotations

import hmac
import ipaddress
import json
import time
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

from lora_runtime.serve.counting import Counts
from lora_runtime.serve.limits import Refused, ServeError

__all__ = ["Gate", "checked_key", "is_loopback", "send_refused"]

KEY_VARIABLE = "LORA_RUNTIME_API_KEY"
_OPEN = ("/health",)  # says nothing of what is here
_LEAST_KEY = 16  # characters

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def is_loopback(host: str) -> bool:
    """Return whether a name or address is this machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def checked_key(key: str | None, host: str) -> str | None:
    """Return the key that is asked for. ServeError where there is none and others can reach `host`, or it is no key."""
    if key is None:
        if not is_loopback(host):
            raise ServeError(
                f"{host} can be reached by others, and there is no key: set {KEY_VARIABLE}, or listen on 127.0.0.1"
            )
        return None
    if len(key) < _LEAST_KEY or not key.isascii() or not key.isprintable() or " " in key:
        raise ServeError(f"{KEY_VARIABLE} is no key: give at least {_LEAST_KEY} letters, digits and signs, no blanks")
    return key


class Gate:
    """An ASGI app before another.

    Without a key a request must name this machine as its host, so that no page in a browser gets at the server by a
    name of its own that leads here.
    """

    def __init__(self, app: App, key: str | None, counts: Counts, routes: Collection[str]) -> None:
        self._app = app
        self._key = None if key is None else key.encode()
        self._counts = counts
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500

        async def counted(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        path = scope["path"]
        try:
            refused = None if path in _OPEN else self._refused(scope)
            if refused is None:
                await self._app(scope, receive, counted)
            else:
                await send_refused(refused, counted)
        finally:
            self._counts.answered(path if path in self._routes else "other", status, time.perf_counter() - began)

    def _refused(self, scope: Scope) -> Refused | None:
        headers = {name.lower(): value for name, value in scope["headers"]}
        if self._key is None:
            host = headers.get(b"host", b"").decode("latin-1")
            name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
            if not is_loopback(name.strip("[]")):
                return Refused(403, "this server has no key, and answers only to 127.0.0.1 and localhost", "bad_host")
            return None
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), self._key):
            return None
        return Refused(401, "the key is missing or wrong: send Authorization: Bearer KEY", "bad_key")


async def send_refused(refused: Refused, send: Send) -> None:
    """Answer a request with why it is refused."""
    body = json.dumps(refused.content).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if refused.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if refused.retry_after is not None:
        headers.append((b"retry-after", str(refused.retry_after).encode()))
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
