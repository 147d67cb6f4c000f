"""When, where and by which model a tag acts, as its fields say: start=, stop=, step=, module=, mask=, box=, soft=.

Steps are counted as sd-webui-lora-block-weight counts them in the WebUI: stop=5 is on for the first five, start=5 off
for them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from lora_runtime.prompt.block_weights import BlockWeights, Rule
from lora_runtime.prompt.excerpt import quote
from lora_runtime.prompt.keyframes import read_position
from lora_runtime.prompt.strength import CURVES, Curve, Position, Region, Shape, Window
from lora_runtime.prompt.tags import ALWAYS, Conditions
from lora_runtime.prompt.values import BadValueError, Reading, parse_float

# What SD.Next calls the two denoisers of a model that has one for much noise and one for little.
EXPERTS: Mapping[str, str] = {"high": "transformer", "low": "transformer_2"}

_STRENGTHS = frozenset({"te", "unet", "dyn"})
_EDGE_HINT = "write a number of steps such as 5, or a part of the run such as 0.25 or 25%"
_DASH = re.compile(r"(?<=[\d.%sa])\s*-")


def read_edge(text: str, reading: Reading) -> Position:
    """Return where a window starts or stops; without a unit a number with a point is a fraction, as in the WebUI."""
    if not text.strip():
        raise BadValueError("is empty", _EDGE_HINT)
    try:
        value, unit = read_position(text)
    except BadValueError:
        raise BadValueError(f"{quote(text)} is not a number", _EDGE_HINT) from None
    if value < 0:
        raise BadValueError(f"{quote(text)} lies before the run", _EDGE_HINT)
    return Position(value, unit or ("fraction" if "." in text else "step"))


def read_steps(text: str, reading: Reading) -> Window:
    """Return the window of step=A-B."""
    parts = _DASH.split(text, maxsplit=1)
    if len(parts) < 2:
        raise BadValueError(f"{quote(text)} has no end", "write step=5-10, or start=5")
    start, stop = (read_edge(part, reading) for part in parts)
    if _is_late(start, stop):
        order = "greater noise level" if start.unit == "sigma" else "smaller number"
        raise BadValueError(f"{quote(text)} ends before it starts", f"write the {order} first")
    return Window(start, stop)


def read_expert(text: str, reading: Reading) -> str:
    """Return the component that is meant: "transformer" for high, "transformer_2" for low."""
    name = text.strip()
    if not re.fullmatch(r"\w+", name):
        raise BadValueError(f"{quote(text)} is not a name", "write high, low or the name of a component")
    return EXPERTS.get(name, name)


def read_mask(text: str, reading: Reading) -> str:
    """Return the file of a mask."""
    if not text.strip():
        raise BadValueError("is empty", "write mask=FILE")
    return text


def read_box(text: str, reading: Reading) -> tuple[float, float, float, float]:
    """Return (x0, y0, x1, y1) in fractions of the picture."""
    numbers = [parse_float(part) for part in text.split(",", 4)]
    hint = "write box=x0,y0,x1,y1 in fractions of the picture, as in box=0,0,0.5,1 for its left half"
    if len(numbers) != 4 or None in numbers:
        raise BadValueError(f"{quote(text)} is not four numbers", hint)
    x0, y0, x1, y1 = (float(number or 0) for number in numbers)
    if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):  # nan too
        raise BadValueError(f"{quote(text)} is not inside the picture", hint)
    return x0, y0, x1, y1


def read_soft(text: str, reading: Reading) -> float:
    """Return the width of a region's edge, in fractions of the picture's shorter side."""
    value = parse_float(text)
    if value is None or not 0 <= value <= 1:
        raise BadValueError(f"{quote(text)} is not a number from 0 to 1", "write soft=0.1")
    return value


def read_shape(text: str, reading: Reading) -> Shape:
    """Return the name of a way from one keyframe to the next."""
    shape = text.strip()
    if shape not in CURVES:
        raise BadValueError(f"{quote(text)} is not known", f"curves are {', '.join(CURVES)}")
    return cast("Shape", shape)


def with_shape(value: Any, shape: Shape) -> Any:
    """Return a curve, or a rule with one, with the given way between its keys; all else as it is."""
    if isinstance(value, Rule):
        return replace(value, ratio=with_shape(value.ratio, shape))
    if isinstance(value, tuple):
        return tuple(with_shape(part, shape) for part in value)
    return replace(value, shape=shape) if isinstance(value, Curve) else value


def has_curve(value: Any) -> bool:
    """Return whether keyframes are somewhere in a value: a curve, or a rule with one."""
    if isinstance(value, tuple):
        return any(map(has_curve, value))
    return isinstance(value.ratio if isinstance(value, Rule) else value, Curve)


def windows_of(values: Mapping[str, Any]) -> tuple[Window, ...]:
    """Return the windows of start= and stop= together, and of step=; all of them have to hold."""
    start, stop, steps = (values.get(key) for key in ("start", "stop", "step"))
    windows = [Window(start, stop)] if start is not None or stop is not None else []
    return (*windows, *([steps] if steps is not None else []))


def hold_never(windows: Sequence[Window]) -> bool:
    """Return whether no step of a run can lie in all windows, however many there are; of unlike units a run tells."""
    starts = [window.start for window in windows if window.start is not None]
    stops = [window.stop for window in windows if window.stop is not None]
    return (
        any(start.unit == "fraction" and start.value >= 1 for start in starts)
        or any(stop.unit != "sigma" and stop.value == 0 for stop in stops)
        or any(_is_late(start, stop) for start in starts for stop in stops)
    )


def _is_late(start: Position, stop: Position) -> bool:
    """Return whether a start is surely not before a stop; time goes from much noise to little."""
    if start.unit != stop.unit:
        return False
    return start.value <= stop.value if start.unit == "sigma" else start.value >= stop.value


def conditions_of(values: Mapping[str, Any], name: str) -> Conditions:
    """Return the conditions that the values of a tag's fields make."""
    if values.keys() <= _STRENGTHS:
        return ALWAYS
    region = {key: values[key] for key in ("mask", "box", "soft") if values.get(key) is not None}
    rules = (*values.get("lbw", ()), *values.get("lbwe", ()), *(v for v in values.values() if isinstance(v, Rule)))
    blocks = BlockWeights(rules, values.get("in"), values.get("mid"), values.get("out"), name)
    return Conditions(
        hires_te=values.get("hrte", values.get("hr")),
        hires_unet=values.get("hrunet", values.get("hr")),
        when=windows_of(values),
        expert=values.get("module"),
        region=Region(**region) if "mask" in region or "box" in region else None,
        blocks=None if blocks == BlockWeights(salt=name) else blocks,
    )
