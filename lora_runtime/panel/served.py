"""The browser's half of the panel, under a name that changes with its content, so that it may be kept for ever."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from types import MappingProxyType

__all__ = ["WEB_HEADERS", "web_file", "web_hash"]

WEB_HEADERS: Mapping[str, str] = MappingProxyType(
    {"X-Content-Type-Options": "nosniff", "Cache-Control": "private, max-age=31536000, immutable"}
)

_MEDIA = {".js": "text/javascript", ".css": "text/css"}


def web_hash() -> str:
    """Return the name of the folder that the modules lie in; relative imports between them keep it."""
    digest = hashlib.sha256()
    for name, content in _contents().items():
        digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]


def web_file(hash: str, name: str) -> tuple[bytes, str] | None:
    """Return the content of a file and its media type; None for another folder's or none of ours."""
    content = _contents().get(name) if hash == web_hash() else None
    return None if content is None else (content, _MEDIA[name[name.rindex(".") :]])


@cache
def _contents() -> Mapping[str, bytes]:
    folder = files("lora_runtime.panel").joinpath("web")
    found = {each.name: each.read_bytes() for each in folder.iterdir() if each.name.endswith(tuple(_MEDIA))}
    return MappingProxyType(dict(sorted(found.items())))
