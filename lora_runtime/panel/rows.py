"""A prompt to the panel's rows: each tag with its fields, its file, and what there is to say of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from lora_runtime.blocks import FLUX
from lora_runtime.errors import CatalogError, LoraError
from lora_runtime.panel.hints import fix, notice, notices
from lora_runtime.panel.library import Library, PanelFile
from lora_runtime.panel.places import place_of_word, utf16_span
from lora_runtime.prompt import BlockWeights, Curve, LoraTag, Prompt, Strength, parse_prompt
from lora_runtime.prompt.block_weights import Draw
from lora_runtime.prompt.edits import EditError, is_muted, renamed, unmuted
from lora_runtime.prompt.parser import WrittenField, written_fields
from lora_runtime.prompt.presets import common_presets
from lora_runtime.prompt.strength import number
from lora_runtime.prompt.tags import Scope
from lora_runtime.wildcards import is_wildcard

__all__ = ["MOST_ROWS", "ratio_of", "tags"]

MOST_ROWS = 60
_USUAL_RANGE = 2.0  # up to twice the strength that a file is made for
_WIDEST_RANGE = 100.0
# What the panel has a control for; every other field is shown as it is written.
_SHOWN = frozenset(
    {"te", "unet", "hr", "hrte", "hrunet", "start", "stop", "curve", "module", "lbw", "was", "box", "mask", "soft"}
)
_TEXTS = ("hr", "hrte", "hrunet", "start", "stop", "step", "curve", "module", "dyn")


def tags(
    prompt: str,
    library: Library,
    *,
    presets: Mapping[str, str] | None = None,
    blocks: Sequence[str] = (),
    scope: Scope = "all",
) -> dict[str, Any]:
    """Return a row for each of the first `MOST_ROWS` tags, and what there is to say.

    `presets` are block weights by name, as `parse_prompt` takes them, and `blocks` those of the loaded model. Nothing
    raises: what is wrong with a tag is said in its row.
    """
    known = common_presets() if presets is None else presets
    read = parse_prompt(prompt, scope=scope, presets=known)
    shown = read.tags[:MOST_ROWS]
    rows = [_row(read, tag, library, known, blocks) for tag in shown]
    rest: list[dict[str, Any]] = []
    for span, said in notices(read, known):
        row = next((row for row, tag in zip(rows, shown, strict=True) if tag.span[0] <= span[0] < tag.span[1]), None)
        (rest if row is None else row["notices"]).append(said)
    return {
        "tags": rows,
        "more": len(read.tags) - len(shown),
        "notices": rest,
        "blocks": [*blocks],
        "presets": [name for name, body in known.items() if ":" in body or _fits(body, blocks)],
    }


def ratio_of(weights: BlockWeights | None, block: str) -> float | Curve | Draw:
    """Return what a block gets of the strength by the rules that are about whole blocks."""
    for rule in reversed(weights.rules if weights else ()):
        if rule.holds(block, ""):
            return rule.ratio
    return 1.0


def _row(
    prompt: Prompt, tag: LoraTag, library: Library, presets: Mapping[str, str], blocks: Sequence[str]
) -> dict[str, Any]:
    said: list[dict[str, Any]] = []
    is_off = is_muted(tag)
    sounding = _sounding(tag, presets, said) if is_off else tag
    fields = written_fields(sounding.raw, presets)[1:]
    values = {field.argument: field.value.strip() for field in fields}
    file = _file(prompt, tag, library, presets, said)
    weights = sounding.conditions.blocks
    low, high = _range(file.weight if file else 0.0, sounding)
    return {
        "span": utf16_span(prompt.source, tag.span),
        "name": tag.name,
        "raw": tag.raw,
        "muted": is_off,
        "te": _text(sounding.te),
        "unet": _text(sounding.unet),
        "curves": {"te": _curve(sounding.te), "unet": _curve(sounding.unet)},
        "range": [low, high],
        "file": None if file is None else asdict(file),
        "words": [
            {"word": word, "present": place_of_word(prompt, word) is not None} for word in (file.words if file else ())
        ],
        "fields": {name: values.get(name, "") for name in _TEXTS},
        "region": _region(sounding),
        "preset": values["lbw"] if values.get("lbw") in presets else "",
        "ratios": {block: _text(ratio_of(weights, block)) for block in blocks},
        "others": [_written(field) for field in fields if _is_other(field, blocks)],
        "notices": said,
    }


def _curve(strength: Strength) -> dict[str, Any] | None:
    """Return the keyframes of a strength that has some, as `edit` takes them; None where positions differ in unit."""
    if not isinstance(strength, Curve) or len({key.position.unit for key in strength.keys}) > 1:
        return None
    keys = [[key.position.value, key.value] for key in strength.keys]
    return {"unit": strength.keys[0].position.unit, "keys": keys}


def _region(tag: LoraTag) -> dict[str, Any] | None:
    """Return the box, the mask and the width of the edge, None where a tag acts everywhere."""
    region = tag.conditions.region
    return None if region is None else {"box": region.box, "mask": region.mask or "", "soft": region.soft}


def _written(field: WrittenField) -> str:
    """Return a field with its key, which it may lack where it stands at its place."""
    keyed = field.argument and field.text == field.value
    return f"{field.argument}={field.value.strip()}" if keyed else field.text


def _sounding(tag: LoraTag, presets: Mapping[str, str], said: list[dict[str, Any]]) -> LoraTag:
    """Return what a muted tag is when it is switched on."""
    try:
        return parse_prompt(unmuted(tag.raw, presets), presets=presets).tags[0]
    except EditError as error:
        said.append(notice("warning", str(error)))
        return tag


def _file(
    prompt: Prompt, tag: LoraTag, library: Library, presets: Mapping[str, str], said: list[dict[str, Any]]
) -> PanelFile | None:
    if is_wildcard(tag.name):
        said.append(notice("info", "one file of this folder, drawn by the seed of the picture"))
        return PanelFile(tag.name, tag.name, "")
    try:
        file = library.find(tag.name)
    except LoraError as error:
        found = []
        for name in error.candidates if isinstance(error, CatalogError) else ():
            try:
                found.append(fix(prompt.source, tag.span, renamed(tag.raw, name, presets), name))
            except EditError:  # no tag can have this name
                continue
        said.append(notice("error", str(error), fixes=found))
        return None
    if file.remark:
        said.append(notice("warning", file.remark))
    return file


def _range(weight: float, tag: LoraTag) -> tuple[float, float]:
    """Return from where to where the sliders go: about the preferred strength, and as far as the tag is now."""
    high = _USUAL_RANGE * (abs(weight) or 1.0)
    numbers = [strength for strength in (tag.te, tag.unet) if not isinstance(strength, Curve)]
    low, high = min(-high / 2, *numbers, 0.0), max(high, *numbers, 0.0)
    return math.floor(max(low, -_WIDEST_RANGE) * 10) / 10, math.ceil(min(high, _WIDEST_RANGE) * 10) / 10


def _is_other(field: WrittenField, blocks: Sequence[str]) -> bool:
    return bool(field.text.strip()) and field.argument not in _SHOWN and field.argument not in blocks


def _fits(body: str, blocks: Sequence[str]) -> bool:
    """Return whether a preset's list is for the blocks of the model; any is where none are known."""
    return not blocks or (body.count(",") + 1 == len(FLUX)) == ("D00" in blocks)


def _text(value: Strength | Draw) -> str:
    return number(value) if isinstance(value, (int, float)) else str(value)
