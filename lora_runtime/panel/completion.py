"""What may stand at the cursor in a tag that is being written: names of files, fields, presets."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lora_runtime.panel.library import Library, PanelFile
from lora_runtime.panel.places import from_utf16, utf16_span
from lora_runtime.prompt.arguments import ARGUMENTS
from lora_runtime.prompt.conditions import EXPERTS
from lora_runtime.prompt.presets import common_presets
from lora_runtime.prompt.strength import CURVES, number

__all__ = ["complete"]

_MOST = 20
_OPEN = re.compile(r"<(?:lora|lyco|loractl):([^<>\n]{0,300})\Z", re.IGNORECASE)
_REST_OF_NAME = re.compile(r"[^:<>\n]{0,300}(?=[:>])")
_NOT_TYPED = frozenset({"was", "x"})


def complete(
    prompt: str,
    cursor: int,
    library: Library,
    *,
    presets: Mapping[str, str] | None = None,
    blocks: Sequence[str] = (),
) -> dict[str, Any]:
    """Return {"span", "items"}: what may be written in the place of a span that ends at the cursor, likeliest first.

    Behind `<lora:` these are names, found by any words in any order; behind the next `:` fields, and behind their `=`
    what they may be. An item has `text`, `label`, `detail` and `picture`. `cursor` is in UTF-16 code units.
    """
    known = common_presets() if presets is None else presets
    place = from_utf16(prompt, max(0, cursor))
    match = _OPEN.search(prompt, max(0, place - 320), place)
    if match is None:
        return {"span": [cursor, cursor], "items": []}
    name, colon, _ = match[1].partition(":")
    if not colon:
        rest = _REST_OF_NAME.match(prompt, place)
        span = (match.start(1), rest.end() if rest else place)
        found = library.search(name, _MOST)
        items = [_name(file, is_closed=rest is not None) for file in found]
        if name.endswith("/") and any(file.place.startswith(name) for file in found):
            text = f"{name}*" if rest else f"{name}*:1>"
            items = [_item(text, f"{name}*", "one of them, by the seed"), *items][:_MOST]
    else:
        start = match.start(1) + match[1].rindex(":") + 1
        span = (start, place)
        items = [*_fields(prompt[start:place], known, blocks)][:_MOST]
    return {"span": utf16_span(prompt, span), "items": items}


def _name(file: PanelFile, *, is_closed: bool) -> dict[str, Any]:
    text = file.name if is_closed else f"{file.name}:{number(file.weight or 1.0)}>"
    detail = " · ".join(filter(None, (file.place if file.place != file.title else "", file.family, file.fit)))
    return _item(text, file.title, detail, file.picture)


def _fields(written: str, presets: Mapping[str, str], blocks: Sequence[str]) -> Iterator[dict[str, Any]]:
    key, equals, value = written.partition("=")
    if equals:
        values: Mapping[str, Sequence[str]] = {
            "lbw": [name for name, body in presets.items() if ":" not in body],
            "lbwe": [name for name, body in presets.items() if ":" in body],
            "module": [*EXPERTS],
            "curve": [*CURVES],
        }
        for each in values.get(key.strip(), ()):
            if each.casefold().startswith(value.casefold()) and each != value:
                yield _item(f"{key}={each}", each, "")
        return
    begin = written.casefold()
    for argument in ARGUMENTS:
        if argument.name not in _NOT_TYPED and argument.name.startswith(begin):
            yield _item(f"{argument.name}=", f"{argument.name}=", argument.noun)
    if not begin:
        return
    for name, body in presets.items():
        if name.casefold().startswith(begin):
            yield _item(f"{'lbwe' if ':' in body else 'lbw'}={name}", name, "block weights")
    for block in blocks:
        if block.casefold().startswith(begin):
            yield _item(f"{block}=", f"{block}=", "block")


def _item(text: str, label: str, detail: str, picture: str = "") -> dict[str, Any]:
    return {"text": text, "label": label, "detail": detail, "picture": picture}
