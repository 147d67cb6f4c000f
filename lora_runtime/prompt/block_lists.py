"""Block weights as people write them, to rules: lists and presets, element rules, and one field a rule.

Lists, presets, R, U and X are those of sd-webui-lora-block-weight. A list is read by how many numbers it has; any other
number of them is refused, since the same count means different blocks to different programs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches

from lora_runtime.blocks import LAYOUTS, expanded
from lora_runtime.prompt.block_weights import Draw, Rule, selection
from lora_runtime.prompt.excerpt import quote
from lora_runtime.prompt.keyframes import read_strength
from lora_runtime.prompt.presets import RESERVED
from lora_runtime.prompt.strength import Curve
from lora_runtime.prompt.values import BadValueError, Reading, parse_float, read_number

_COUNTS = "12 (SDXL), 17 (SD), 20 (all of SDXL), 26 (all of SD) or 61 (Flux) numbers"
# Layouts of ComfyUI's Inspire Pack that are counted otherwise.
_INSPIRE = frozenset({18, 21, 27, 55})
_OF_INSPIRE = re.compile(r"(FLUX|SDXL|SD)-(?:DBL|SGL|LyC)\b")
_X = re.compile(r"X(?:([+-])(.+))?")
_BLOCK_LIKE = re.compile(r"(?:BASE|CLIP|T5|IN|M|OUT|D|S)[\d-][\w-]*")
_RATIO_HINT = "write a number such as 0.5"

Ratio = float | Curve | Draw


def read_ratio(text: str, reading: Reading) -> Ratio:
    """Return a number, a curve, a random draw (R, U), or the value of x= (X, X+0.2); raises BadValueError."""
    written = text.strip()
    if written in ("R", "U"):
        return Draw(written)
    match = _X.fullmatch(written)
    if match is None:
        return read_strength(text, reading)
    x = reading.values.get("x")
    if x is None:
        raise BadValueError(f"{quote(written)} has no value: there is no x= in the tag", "write x=0.5")
    reading.used_x = True
    change = read_number(match[2]) if match[1] else 0.0
    return round(float(x - change if match[1] == "-" else x + change), 6)


def read_x(text: str, reading: Reading) -> float:
    """Return what stands for X in a list."""
    return read_number(text)


def read_rule(where: str, text: str, reading: Reading) -> Rule:
    """Return the rule of one field: IN04-08=0.5 or *attn1*=0."""
    return Rule(" ".join(where.split()), read_ratio(text, reading))


def rule_misfit(where: str) -> str | None:
    """Return '' if the key of a field names blocks or is a pattern, a reason if it nearly does, None otherwise."""
    words = where.split()
    try:
        selection(where)
    except ValueError as error:
        word = str(error)
        return f"there is no block {quote(word)}" if _BLOCK_LIKE.fullmatch(word) else None
    return "" if words and len(where) <= 200 and words != ["NOT"] else None


def is_block_list(text: str, presets: Mapping[str, str]) -> bool:
    """Return whether a field without a key can only be block weights: a preset's name, or a list of a known length."""
    if text.strip() in presets:
        return True
    return text.count(",") + 1 in LAYOUTS and all(
        parse_float(item) is not None or item.strip() in ("R", "U") or _X.fullmatch(item.strip())
        for item in text.split(",")
    )


def read_list(text: str, reading: Reading) -> tuple[Rule, ...]:
    """Return the rules of a list or of a preset, one for each block of the model; raises BadValueError."""
    name = text.strip()
    body = reading.presets.get(name)
    if body is None and "," not in text and parse_float(text) is None:
        raise _unknown(name, reading.presets)
    if body is not None and ":" in body:
        raise BadValueError(f"{quote(name)} are rules for elements", f"write lbwe={name}")
    items = (text if body is None else body).split(",")
    if len(items) not in LAYOUTS:
        inspire = "; lists of the Inspire Pack are laid out otherwise" if len(items) in _INSPIRE else ""
        raise BadValueError(f"{_counted(len(items))}{inspire}", f"write {_COUNTS}")
    ratios = [*_ratios(items, reading, placed=body is None)]
    return tuple(Rule(block, 0.0 if place is None else ratios[place]) for block, place in expanded(len(items)))


def read_elements(text: str, reading: Reading) -> tuple[Rule, ...]:
    """Return the rules of lbwe=: a preset, or BLOCKS;ELEMENTS;WEIGHT and more after commas; raises BadValueError.

    In a preset ":" stands for ";", which has another meaning in a tag.
    """
    name = text.strip()
    body = reading.presets.get(name)
    if body is None and ";" not in text:
        raise _unknown(name, reading.presets)
    if body is not None and ":" not in body:
        raise BadValueError(f"{quote(name)} is a list of blocks", f"write lbw={name}")
    entries = (text if body is None else body).split(",")
    return tuple(_element_rule(entry, reading) for entry in entries)


def _ratios(items: list[str], reading: Reading, *, placed: bool) -> Iterator[Ratio]:
    """Yield the ratios of a list; what is said about one has its place, if the list stands in the tag itself."""
    start = 0
    for item in items:
        span = (start, start + len(item))
        said = len(reading.remarks)
        try:
            yield read_ratio(item, reading)
        except BadValueError as error:
            raise BadValueError(error.reason, error.hint, span if placed else None) from None
        reading.remarks[said:] = [remark._replace(span=span) for remark in reading.remarks[said:] if placed]
        start += len(item) + 1


def _element_rule(entry: str, reading: Reading) -> Rule:
    parts = [part.strip() for part in re.split("[:;]", entry)]
    if len(parts) != 3:
        raise BadValueError(f"{quote(entry)} is not BLOCKS;ELEMENTS;WEIGHT", "write IN05-OUT05;attn;0")
    blocks, elements, weight = parts
    if "NOT" in elements.split():
        raise BadValueError(f"{quote(elements)} leaves elements out, which is not read here", "name the elements meant")
    where = " ".join((*blocks.split(), *(f"*{element}*" for element in elements.split()))) or "*"
    if reason := rule_misfit(where):
        raise BadValueError(f"{quote(entry)}: {reason}", "blocks are BASE, IN00-IN11, M00, OUT00-OUT11")
    if reason is None:
        raise BadValueError(f"{quote(blocks)} are not blocks", "blocks are BASE, IN00-IN11, M00, OUT00-OUT11")
    return Rule(where, read_ratio(weight, reading))


def _unknown(name: str, presets: Mapping[str, str]) -> BadValueError:
    if not name:
        return BadValueError("are empty", f"write a preset, or {_COUNTS}")
    if name in RESERVED:
        return BadValueError(f"{quote(name)} is a name that plots fill in", "write a preset or a list")
    if match := _OF_INSPIRE.match(name):
        way_out = "write a rule for each part, as in D00-06=1:D07-18=0" if match[1] == "FLUX" else f"write {_COUNTS}"
        return BadValueError(f"{quote(name)} is a preset of the Inspire Pack that is laid out otherwise", way_out)
    near = get_close_matches(name.upper()[:40], presets, 1, cutoff=0.6)
    hint = f"did you mean {near[0]}?" if near else f"presets are {', '.join(presets)}"
    return BadValueError(f"{quote(name)} is no preset that is known", hint)


def _counted(count: int) -> str:
    return f"have {count} number{'s' if count > 1 else ''}"
