"""`index.html`: all pictures of a sweep with what they were made of, in one file that needs no server."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any
from urllib.parse import quote

__all__ = ["page_of"]

_MOST = 10_000  # figures: a browser takes seconds for more

_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width">
<style>
body {{ font: 14px/1.4 system-ui, sans-serif; margin: 1rem; color-scheme: light dark }}
input {{ font: inherit; width: min(40rem, 100%); padding: .3rem }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(14rem, 1fr)); gap: 1rem; margin-top: 1rem }}
figure {{ margin: 0; overflow-wrap: anywhere }}
img {{ width: 100%; height: auto; image-rendering: pixelated }}
figcaption p {{ margin: 0; white-space: pre-wrap }}
.error {{ color: #c22 }}
.small {{ opacity: .7; font-size: 12px }}
</style></head><body>
<h1>{title}</h1>
<label>Show only what has <input id="filter" type="search" placeholder="words of a prompt, a tag, a column"></label>
<span id="count">{count}</span>
<main>
"""
_TAIL = """</main>
<script>
const figures = [...document.querySelectorAll("figure")];
const texts = figures.map(figure => figure.textContent.toLowerCase());
const box = document.getElementById("filter"), count = document.getElementById("count");
box.addEventListener("input", () => {
  const words = box.value.toLowerCase().split(/\\s+/).filter(Boolean);
  let shown = 0;
  figures.forEach((figure, index) => {
    figure.hidden = !words.every(word => texts[index].includes(word));
    shown += !figure.hidden;
  });
  count.textContent = `${shown} of ${figures.length}`;
});
</script></body></html>
"""


def page_of(lines: Iterable[Mapping[str, Any]], title: str) -> str:
    """Return the page. All that is shown is escaped; pictures are named by their paths beside it."""
    lines = list(lines)
    left_out = len(lines) - _MOST
    count = f"{len(lines)} rows" + (
        f", of which the last {left_out} are only in manifest.jsonl" if left_out > 0 else ""
    )
    figures = "".join(map(_figure, lines[:_MOST]))
    return _HEAD.format(title=escape(title), count=escape(count)) + figures + _TAIL


def _figure(line: Mapping[str, Any]) -> str:
    shown = [f"<p>{_text(line.get('prompt'))}</p>"]
    if line.get("negative"):
        shown.append(f'<p class="small">without: {_text(line["negative"])}</p>')
    if line.get("error"):
        shown.append(f'<p class="error">{_text(line["error"])}</p>')
    for said in line.get("diagnostics") or ():
        shown.append(f'<p class="small">{_text(said.get("severity"))}: {_text(said.get("message"))}</p>')
    names = ("key", "model", "seed", "width", "height", "steps", "guidance_scale", "seconds", "worker")
    facts = {name: line[name] for name in names if line.get(name) is not None} | dict(line.get("columns") or {})
    shown.append(f'<p class="small">{_text(", ".join(f"{name}: {value}" for name, value in facts.items()))}</p>')
    picture = ""
    if line.get("file"):
        source = quote(_whole(line["file"]))
        picture = f'<a href="{source}"><img src="{source}" alt="{_text(line.get("prompt"))}" loading="lazy"></a>'
    return f"<figure>{picture}<figcaption>{''.join(shown)}</figcaption></figure>\n"


def _text(value: Any) -> str:
    return escape(_whole(value))


def _whole(value: Any) -> str:
    """Return a value as text that UTF-8 can write: half of a character is a question mark."""
    return str(value).encode("utf-8", "replace").decode("utf-8")
