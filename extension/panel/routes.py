"""Our routes: the HTTP API of the built-in extension, `explain`, `report`, and what the page in the browser fetches."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

from fastapi import Body
from fastapi.responses import JSONResponse

from lora_runtime.panel import PromptFacts
from lora_runtime.panel.card_endpoints import card_endpoints
from lora_runtime.prompt import LoraTag, Prompt
from lora_runtime.prompt.excerpt import line_and_column
from lora_runtime.prompt.strength import Curve, Strength
from lora_runtime.report import LoraReport, Report
from lora_runtime.requests import Request

from ..engine.loading import sha256_of
from ..library.shelf import Shelf
from ..prompts.notices import Notice
from ..whole import shown_path, whole
from .card_routes import add_card_routes, replace_routes
from .guards import Guards
from .report_route import ReportOn, report_json
from .stack_routes import add_stack_routes

__all__ = ["Explain", "ReportOn", "add_routes"]

# What a prompt is read as, the requests for its files, what these would do to the model, and what there is to say.
Explain = Callable[[str], tuple[Prompt, list[Request], Report, list[Notice]]]

# FastAPI has 40 threads for all routes of the program: those who ask for this one must not take all of them.
_AT_ONCE = 2
_REPORTS_AT_ONCE = 1  # it reads files and multiplies matrices, for seconds
_SECONDS_IN_LINE = 2.0
_LONGEST_PROMPT = 100_000
_PROMPT = f"a text of at most {_LONGEST_PROMPT:,} characters"
# Of any type, and looked at by hand: of half a character in a text pydantic 2 makes an error that cannot be sent.
_BODY = Body(..., embed=True, description=_PROMPT)


def add_routes(
    app: Any, shelf: Shelf, page: Any, explain_prompt: Explain, report_on: ReportOn, facts: Callable[[], PromptFacts]
) -> None:
    """Add the routes to the program's app, in place of any others at the same paths.

    All or none: where one cannot be added, the app has those that it had. `page` shows the cards of `shelf`, and
    `facts` says how prompts are read now.
    """

    # Plain functions and not coroutines: FastAPI runs them in threads, and a slow disk does not stop the UI.
    def get_loras() -> list[dict[str, Any]]:
        """List the LoRA files, with the metadata that they carry."""
        entries = [(name, shelf.entry(name)) for name in shelf.names()]
        return [
            {
                "name": name,
                "alias": entry.alias or entry.name,
                "path": shown_path(entry.path),
                "metadata": shelf.metadata.of(entry) or {},  # none where it is gone or damaged by now
            }
            for name, entry in entries
            if entry is not None
        ]

    def refresh_loras() -> None:
        """Look at the folders again."""
        page.refresh()

    asking = threading.BoundedSemaphore(_AT_ONCE)

    def explain(prompt: Any = _BODY) -> Any:
        """Say how a prompt is read and what it would do to the checkpoint that is loaded, without painting."""
        return _in_turn(asking, prompt, "explained", lambda text: _explanation(explain_prompt, text))

    reporting = threading.BoundedSemaphore(_REPORTS_AT_ONCE)

    def report(prompt: Any = _BODY) -> Any:
        """Say what the LoRAs of a prompt do together on the checkpoint that is loaded, in figures and as a picture."""
        return _in_turn(reporting, prompt, "reported on", lambda text: report_json(report_on, text))

    guards = Guards(app)
    before = list(app.router.routes)
    try:
        replace_routes(app, "GET", {"/sdapi/v1/loras": get_loras}, guards.api)
        replace_routes(app, "POST", {"/sdapi/v1/refresh-loras": refresh_loras}, guards.api)
        replace_routes(app, "POST", {"/lora-runtime/explain": explain, "/lora-runtime/report": report}, guards.explain)
        add_card_routes(app, page, guards.page)
        for method, path, answer, writes in card_endpoints(page):
            replace_routes(app, method, {f"/lora-runtime/{path}": answer}, guards.writing if writes else guards.page)
        add_stack_routes(app, shelf, page, facts, report_on, guards.page)
    except Exception:
        app.router.routes[:] = before
        raise


def _in_turn(turns: threading.BoundedSemaphore, prompt: Any, done: str, answer: Callable[[str], Any]) -> JSONResponse:
    """Return the answer for a prompt, or that it is none, or that others are first."""
    if not isinstance(prompt, str) or len(prompt) > _LONGEST_PROMPT:
        return JSONResponse({"detail": f"prompt: {_PROMPT} is expected"}, status_code=422)
    if not turns.acquire(timeout=_SECONDS_IN_LINE):
        return JSONResponse({"detail": f"other prompts are being {done}; ask again"}, status_code=503)
    try:
        return JSONResponse(answer(prompt))
    finally:
        turns.release()


def _explanation(explain: Explain, text: str) -> dict[str, Any]:
    """Return what is said about a prompt, as JSON can hold it."""
    text = whole(text)
    prompt, requests, report, notices = explain(text)
    by_span = {request.span: request for request in requests}
    reports = {lora.sha256: lora for lora in report.loras}
    return {
        "text": prompt.text,
        "model": report.model,
        "weights": report.weights,
        "bytes": report.bytes,
        "tags": [_tag(tag, text, by_span, reports) for tag in prompt.tags],
        "notices": [notice.as_dict() for notice in notices],
    }


def _tag(tag: LoraTag, text: str, by_span: Any, reports: dict[str, LoraReport]) -> dict[str, Any]:
    line, column = line_and_column(text, tag.span[0])
    request = by_span.get(tag.span)
    lora = request.lora if request else None
    report = reports.get(lora.sha256) if lora else None
    return {
        "tag": tag.raw,
        "line": line,
        "column": column,
        "name": tag.name,
        "te": _as_json(tag.te),
        "unet": _as_json(tag.unet),
        "dyn": tag.dyn,
        "file": shown_path(lora.path) if lora else None,
        "sha256": sha256_of(lora) if lora else None,
        "family": lora.family if lora else None,
        "keys": report.keys if report else None,
        "used": report.used if report else None,
        "targets": dict(report.targets) if report else {},
        "live": report.live if report else None,
        "unused": dict(Counter(report.unused.values())) if report else {},
    }


def _as_json(strength: Strength) -> float | str:
    """Return a number, or a schedule as a tag has it."""
    return str(strength) if isinstance(strength, Curve) else strength
