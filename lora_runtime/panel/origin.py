"""Whether a request that changes something comes from the page itself, and not from a page of another site."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

__all__ = ["foreign"]


def foreign(headers: Mapping[str, str]) -> str:
    """Return why a request is not taken for one of this page or of a program, "" where it is; names in lower case.

    A browser says by Sec-Fetch-Site where a request comes from, and on a plain address of a network, where it does not,
    by Origin. JSON cannot be sent to another site without asking it first. A program sends what it likes: it has no
    user's login that it could misuse.
    """
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return "what changes files is asked in JSON"
    site = headers.get("sec-fetch-site")
    if site is not None:
        return "" if site in ("same-origin", "none") else f"the request comes from another site ({site})"
    origin = headers.get("origin")
    if origin is None:
        return ""
    hosts = {headers.get(name, "").strip().lower() for name in ("host", "x-forwarded-host")} - {""}
    if urlsplit(origin).netloc.lower() in hosts:
        return ""
    return f"the request comes from another site ({origin}); behind a proxy let it pass the host's name on"
