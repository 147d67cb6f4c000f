"""A film over HTTP, whole or in parts: Safari plays none that it cannot ask for in parts.

Newer versions of Starlette answer in parts by themselves; that of the WebUI does not.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

__all__ = ["film_response"]

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_MOST_BYTES = 4 << 20  # in one part: who wants more asks again


def film_response(path: Path, media_type: str, asked: str) -> Any:
    """Return a film, or the part that a Range header asks for; 404 where it is gone, 416 where it has no such part."""
    from fastapi.responses import FileResponse, Response

    headers = {
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "private, max-age=86400",
        "Accept-Ranges": "bytes",
    }
    if not path.is_file():  # a pipe could wait for ever
        return Response(status_code=404)
    found = _RANGE.fullmatch(asked)
    first, last = found.groups() if found else ("", "")
    if not first and not last:
        return FileResponse(path, media_type=media_type, headers=headers)
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            begin, end = _part(first, last, size)
            if begin >= end:
                return Response(status_code=416, headers={"Content-Range": f"bytes */{size}"})
            file.seek(begin)
            content = file.read(min(end - begin, _MOST_BYTES))
    except OSError:
        return Response(status_code=404)
    headers["Content-Range"] = f"bytes {begin}-{begin + len(content) - 1}/{size}"
    return Response(content, status_code=206, media_type=media_type, headers=headers)


def _part(first: str, last: str, size: int) -> tuple[int, int]:
    """Return where a part begins and ends, the end not counted; without a first byte it is the last ones."""
    if not first:
        return max(0, size - int(last)), size
    return int(first), min(size, int(last) + 1) if last else size
