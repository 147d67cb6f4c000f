"""Callbacks: a list of each kind, `before_ui` and `script_unloaded` from the last to the first; no ordered map."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from modules import errors


class ScriptCallback(NamedTuple):
    script: str
    callback: Callable[..., None]


callback_map: dict[str, list[ScriptCallback]] = {
    f"callbacks_{kind}": [] for kind in ("before_process", "before_ui", "script_unloaded")
}


def clear_callbacks() -> None:
    for callbacks in callback_map.values():
        callbacks.clear()


def _add(kind: str, callback: Callable[..., None]) -> None:
    file = sys._getframe(2).f_code.co_filename
    callback_map[f"callbacks_{kind}"].append(ScriptCallback(file, callback))


def on_before_process(callback: Callable[[Any], None]) -> None:
    _add("before_process", callback)


def on_before_ui(callback: Callable[[], None]) -> None:
    _add("before_ui", callback)


def on_script_unloaded(callback: Callable[[], None]) -> None:
    _add("script_unloaded", callback)


def remove_callbacks_for_function(function: Callable[..., None]) -> None:
    for callbacks in callback_map.values():
        for known in [known for known in callbacks if known.callback == function]:
            callbacks.remove(known)


def run(kind: str, *arguments: Any) -> None:
    """Call them all; what one of them raises is displayed."""
    callbacks = callback_map[f"callbacks_{kind}"]
    for known in callbacks if kind == "before_process" else reversed(callbacks):
        try:
            known.callback(*arguments)
        except Exception as error:
            errors.display(error, f"Executing callback: {known.script} {kind}")
