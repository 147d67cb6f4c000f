"""Two axes for the XYZ plot: the strength of a LoRA, and which LoRA."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from modules import scripts

from lora_runtime.errors import LoraError
from lora_runtime.prompt.variations import strengths, with_lora, with_strength

from ...library.patience import Patience
from ...library.shelf import Shelf
from .settings import Settings

_STRENGTH, _WHICH = "[LoRA] Strength (0-1(+0.25), or name: 0.2, 0.5)", "[LoRA] Which"


def add(shelf: Shelf, settings: Settings, undo: ExitStack) -> None:
    """Add the axes to the XYZ plot script, if that is there; once, though Reload UI may keep its module."""
    grid = next((data.module for data in scripts.scripts_data if hasattr(data.module, "axis_options")), None)
    if grid is None:
        return

    def same(name: str, other: str) -> bool:
        patience = Patience(seconds_to_hash=0, suggestions=0)
        try:
            return shelf.find(name, patience)[0].path == shelf.find(other, patience)[0].path
        except LoraError:
            return False

    def set_strength(p: Any, value: str, values: list[str]) -> None:
        if ":" not in value:
            p.lora_runtime_strength = float(value)  # for the other axis, which may add the LoRA only after this
        for prompt in _prompts(p):
            setattr(p, prompt, with_strength(getattr(p, prompt), value, same))

    def set_lora(p: Any, value: str, values: list[str]) -> None:
        strength = getattr(p, "lora_runtime_strength", settings.default_strength)
        for prompt in _prompts(p):
            setattr(p, prompt, with_lora(getattr(p, prompt), value, strength))

    def check_strengths(p: Any, values: list[str]) -> None:
        check_names(p, [name for name, colon, _ in (value.rpartition(":") for value in values) if colon])

    def check_names(p: Any, values: list[str]) -> None:
        patience = Patience()
        for name in dict.fromkeys(values):
            if name != "None":
                try:
                    shelf.find(name, patience)
                except LoraError as error:
                    raise RuntimeError(str(error)) from error

    def remove() -> None:
        grid.axis_options[:] = [axis for axis in grid.axis_options if axis.label not in (_STRENGTH, _WHICH)]

    option, plain = grid.AxisOption, grid.format_value
    added = [
        option(_STRENGTH, str, set_strength, format_value=plain, confirm=check_strengths, prepare=strengths),
        option(
            _WHICH,
            str,
            set_lora,
            format_value=plain,
            confirm=check_names,
            choices=lambda: ["None", *shelf.names()],
        ),
    ]
    remove()
    undo.callback(remove)
    grid.axis_options.extend(added)


def _prompts(p: Any) -> list[str]:
    """Return the prompts of a job that are one text each and not empty; an empty hires prompt follows the first."""
    names = ["prompt", *(["hr_prompt"] if getattr(p, "hr_prompt", "") else [])]
    return [name for name in names if isinstance(getattr(p, name, None), str)]
