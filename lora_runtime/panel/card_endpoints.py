"""What cards ask for of a file: all there is to know of it, its film, its star, and another name or place.

Functions for FastAPI, which a host adds at its own address, behind its own login.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from lora_runtime.errors import LoraError
from lora_runtime.panel.films import film_response

__all__ = ["CardEndpoint", "CardPage", "card_endpoints"]

_LONGEST = 4000  # characters of a name


class CardPage(Protocol):
    """The cards of a host, each with a name that means its file alone."""

    def details(self, name: str, model: str, /) -> dict[str, Any] | None:
        """Return what there is to know of a file, None where it is gone.

        `model` is the one that is chosen on the page, "" where the program has but one.
        """
        ...

    def film(self, name: str) -> tuple[Path, str] | None:
        """Return the film beside a file and its media type, or None."""
        ...

    def star(self, name: str, favourite: bool) -> dict[str, Any]:
        """Make a file a favourite, or no more; raises LoraError or OSError."""
        ...

    def bin(self) -> dict[str, Any]:
        """Return what is in the bins, and whether files may be changed."""
        ...

    def change(self, action: object, given: Mapping[str, object]) -> dict[str, Any]:
        """Give a file another name or place, as `Filing.do`; raises LoraError or OSError."""
        ...


class CardEndpoint(NamedTuple):
    """A question: its method, its path below the base, and what answers. `writes`: it is the page's own to ask."""

    method: str
    path: str
    answer: Callable[..., Any]
    writes: bool = False


def card_endpoints(page: CardPage) -> Iterator[CardEndpoint]:
    """Yield each question; those that write are to be asked by the page itself alone: see `panel/origin.py`.

    Plain functions and not coroutines: FastAPI runs these in threads, so that a slow disk does not stop the page.
    """
    from fastapi import Body, Header, Query, Response

    asked = Body(None)

    def answered(content: dict[str, Any], status: int = 200) -> Response:
        # In ASCII: half of a character, which a file name may have, can be sent so too.
        return Response(json.dumps(content), status, media_type="application/json")

    def tried(ask: Callable[[], dict[str, Any]]) -> Response:
        try:
            return answered(ask())
        except LoraError as error:
            return answered({"error": str(error)})
        except OSError as error:
            reason = ": ".join(str(part) for part in (error.strerror, error.filename) if part) or str(error)
            return answered({"error": f"nothing was changed: {reason}"})

    def details(name: str = Query(..., max_length=_LONGEST), model: str = Query("", max_length=_LONGEST)) -> Any:
        """Return what there is to know of a file."""
        found = page.details(name, model)
        if found is None:
            return answered({"error": f'there is no LoRA "{name}" any more; refresh the page'})
        return answered(found)

    def film(name: str = Query(..., max_length=_LONGEST), range: str = Header("", max_length=200)) -> Any:
        """Return the film beside a file, or a part of it."""
        found = page.film(name)
        return Response(status_code=404) if found is None else film_response(*found, range)

    def bin_() -> Any:
        """Return what is in the bins."""
        return answered(page.bin())

    # Of any type, and looked at by hand: of half a character in a text pydantic 2 makes a refusal that cannot be sent.
    def star(body: Any = asked) -> Any:
        """Make a file a favourite, or no more."""
        name, on = (_table(body).get(key) for key in ("name", "on"))
        if not isinstance(name, str) or not isinstance(on, bool):
            return answered({"detail": "name is that of a card, and on whether it is a favourite"}, 422)
        return tried(lambda: page.star(name, on))

    def file(body: Any = asked) -> Any:
        """Rename a file, move it, put it into the bin, or take it out again."""
        given = _table(body)
        return tried(lambda: page.change(given.get("action"), given))

    yield CardEndpoint("GET", "details", details)
    yield CardEndpoint("GET", "film", film)
    yield CardEndpoint("GET", "bin", bin_)
    yield CardEndpoint("POST", "star", star, writes=True)
    yield CardEndpoint("POST", "file", file, writes=True)


def _table(body: Any) -> Mapping[str, Any]:
    return body if isinstance(body, Mapping) else {}
