"""What may stand after the name in a `<lora:…>` tag, as data.

The parser reads the fields of a tag by this table and hands the values on by name: a new argument is one entry here,
and where it belongs in LoraTag or its Conditions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lora_runtime.prompt.block_lists import read_elements, read_list, read_x
from lora_runtime.prompt.conditions import (
    read_box,
    read_edge,
    read_expert,
    read_mask,
    read_shape,
    read_soft,
    read_steps,
)
from lora_runtime.prompt.excerpt import quote
from lora_runtime.prompt.keyframes import read_strength
from lora_runtime.prompt.strength import Curve
from lora_runtime.prompt.tags import Dialect
from lora_runtime.prompt.values import BadValueError, Reading, parse_float


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of a tag.

    `read` turns the text of a field into the value and raises BadValueError; a tag whose `essential` argument cannot be
    read is not applied, another argument is left out. `noun` is what messages call it.
    """

    name: str
    noun: str
    read: Callable[[str, Reading], Any]
    essential: bool = False


def read_rank(text: str, reading: Reading) -> int:
    """Return what `int()` reads, but nothing below 1 and no digit separators; raises BadValueError."""
    if not text.strip():
        raise BadValueError("is empty", 'write a whole number such as 8, or leave out the ":"')
    try:
        rank = None if "_" in text else int(text)
    except ValueError:
        rank = None
    if rank is not None and rank < 1:  # 0 would leave nothing, and -1 all but the last
        raise BadValueError(f"{quote(text)} is less than 1", "write dyn=1 or more, or leave the rank out for all ranks")
    if rank is not None:
        return rank
    near = parse_float(text.replace("_", ""))
    hint = "write a whole number such as 8"
    if near is not None and near.is_integer() and abs(near) < 1e6:
        hint = f"write {near:.0f}"
    raise BadValueError(f"{quote(text)} is not a whole number", hint)


def read_was(text: str, reading: Reading) -> str:
    """Return what a muted tag's strengths were, as text: they are read when it is heard again."""
    if not text.strip():
        raise BadValueError("is empty", "write was=0.7")
    return " ".join(text.split())


# Fields are read in this order, whatever their order in the tag: lists have an X that x= gives.
ARGUMENTS = (
    Argument("te", "strength", read_strength, essential=True),
    Argument("unet", "unet strength", read_strength, essential=True),
    Argument("dyn", "rank", read_rank, essential=True),
    Argument("hr", "hires strength", read_strength, essential=True),
    Argument("hrte", "hires strength", read_strength, essential=True),
    Argument("hrunet", "hires unet strength", read_strength, essential=True),
    Argument("in", "strength of the input blocks", read_strength, essential=True),
    Argument("mid", "strength of the middle block", read_strength, essential=True),
    Argument("out", "strength of the output blocks", read_strength, essential=True),
    Argument("x", "value of X", read_x),
    Argument("lbw", "block weights", read_list),
    Argument("lbwe", "element weights", read_elements),
    Argument("start", "start", read_edge),
    Argument("stop", "stop", read_edge),
    Argument("step", "step", read_steps),
    Argument("curve", "curve", read_shape),
    Argument("module", "module", read_expert),
    Argument("mask", "mask", read_mask),
    Argument("box", "box", read_box),
    Argument("soft", "width of the edge", read_soft),
    Argument("was", "strength before it was muted", read_was),
)
BY_NAME: Mapping[str, Argument] = {argument.name: argument for argument in ARGUMENTS}
# Other spellings of a key. Of LBW's, "w" is the old one; "end" and the "step_" ones are other programs'.
ALIASES: Mapping[str, str] = {"w": "lbw", "end": "stop", "step_start": "start", "step_end": "stop"}
# What may stand without a key, in this order. ComfyUI has the denoiser first.
BY_POSITION: Mapping[Dialect, tuple[str, ...]] = {
    "a1111": ("te", "unet", "dyn"),
    "comfy": ("unet", "te", "dyn"),
    "native": ("te", "unet", "dyn"),
}


def _is_by_share(strength: Any) -> bool:
    return isinstance(strength, Curve) and strength.keys[0].position.unit == "share"


def with_defaults(values: Mapping[str, Any], dialect: Dialect) -> tuple[Any, Any, int | None]:
    """Return the strengths te and unet and the rank: of what may come by position the second is as the first.

    Keyframes in brackets are the denoiser's, and the text encoders' strength is then 0, as in Forge Neo.
    """
    first, second, _ = BY_POSITION[dialect]
    if "te" not in values and _is_by_share(values.get("unet")):
        return 0.0, values["unet"], values.get("dyn")
    given = {first: values.get(first, 1.0)}
    given[second] = values.get(second, given[first])
    return given["te"], given["unet"], values.get("dyn")
