"""The route of the report: what the LoRAs of a prompt do together, as tables and a picture that the page shows."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from html import escape
from typing import Any

from lora_runtime.prompt import Prompt
from lora_runtime.workbench import Reported, heat_map
from lora_runtime.workbench.balance import scaled
from lora_runtime.workbench.tables import Table, tables_of

from ..prompts.notices import Notice
from ..whole import whole

__all__ = ["ReportOn", "report_json"]

# What a prompt is read as, the report of its files, None where there is none, and what there is to say.
ReportOn = Callable[[str], tuple[Prompt, Reported | None, list[Notice]]]

_DOTS = 110  # an inch: a picture as wide as the popup


def report_json(report: ReportOn, text: str) -> dict[str, Any]:
    """Return the report on a prompt, as JSON can hold it: figures for programs, and HTML for the page.

    `balanced` is the prompt with the strengths that keep the norm, None where they do already or no text says them.
    """
    text = whole(text)
    prompt, found, notices = report(text)
    answer: dict[str, Any] = {"notices": [notice.as_dict() for notice in notices], "balanced": None, "tables": []}
    said = [*map(str, notices)]
    if found is not None:
        tables = tables_of(found)
        answer |= {
            "names": [*map(whole, found.names)],
            "balance": found.balance,
            "balanced": _balanced(prompt, found.balance),
            "suggestions": [*map(whole, found.suggestions)],
            "tables": [{"title": whole(table.title), "heads": table.heads, "rows": table.rows} for table in tables],
        }
        said += found.suggestions
        answer["html"] = whole("".join(_html(said, tables, _picture(found))))
    else:
        answer["html"] = whole("".join(_html(said, [], "")))
    return answer


def _balanced(prompt: Prompt, balance: float) -> str | None:
    if balance == 1:
        return None
    try:
        return whole(scaled(prompt, balance))
    except ValueError:  # a tag that nothing but the text around it could say
        return None


def _picture(found: Reported) -> str:
    """Return the heat map as the address of a PNG, "" where there is no matplotlib."""
    try:
        figure = heat_map(found)
    except ImportError:
        return ""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=_DOTS)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _html(said: list[str], tables: list[Table], picture: str) -> Iterator[str]:
    yield "".join(f"<p>{escape(line)}</p>" for line in said)
    if picture:
        yield f'<img src="{picture}" alt="A heat map of blocks and LoRAs">'
    for table in tables:
        heads = "".join(f"<th>{escape(head)}</th>" for head in table.heads)
        rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in table.rows)
        yield f"<h4>{escape(table.title)}</h4><table><tr>{heads}</tr>{rows}</table>"
