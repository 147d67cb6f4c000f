"""Callbacks: who registered them, in which order they run, and that none stops the program."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modules import errors

_CATEGORIES = ("app_started", "model_loaded", "before_ui", "infotext_pasted", "script_unloaded", "cfg_denoiser")


@dataclass
class ScriptCallback:
    """One callback, the file that registered it, and a name by which users may order it."""

    script: str
    callback: Callable[..., Any]
    name: str = "unnamed"


callback_map: dict[str, list[ScriptCallback]] = {f"callbacks_{category}": [] for category in _CATEGORIES}
ordered_callbacks_map: dict[str, list[ScriptCallback]] = {}


def _add(category: str, callback: Callable[..., Any], name: str | None) -> None:
    frame = sys._getframe(1)
    while frame.f_code.co_filename == __file__ and frame.f_back is not None:
        frame = frame.f_back
    script = frame.f_code.co_filename
    named = f"{Path(script).parent.parent.name}/{Path(script).name}/{category}" + (f"/{name}" if name else "")
    callback_map[f"callbacks_{category}"].append(ScriptCallback(script, callback, named))


def ordered_callbacks(category: str) -> list[ScriptCallback]:
    """Return the callbacks as they run. An order once made is kept while their number stays the same."""
    callbacks = callback_map[f"callbacks_{category}"]
    known = ordered_callbacks_map.get(category)
    if known is None or len(known) != len(callbacks):
        known = ordered_callbacks_map[category] = list(callbacks)
    return known


def clear_callbacks() -> None:
    """Forget all of them: the scripts are loaded anew."""
    for callbacks in callback_map.values():
        callbacks.clear()
    ordered_callbacks_map.clear()


def _run(category: str, callbacks: Iterable[ScriptCallback], *arguments: Any) -> None:
    for callback in callbacks:
        try:
            callback.callback(*arguments)
        except Exception:
            errors.report(f"callback {category} of {callback.script}", exc_info=True)


def on_app_started(callback: Callable[..., Any], *, name: str | None = None) -> None:
    """Ask to be called with (demo, app)."""
    _add("app_started", callback, name)


def on_model_loaded(callback: Callable[..., Any], *, name: str | None = None) -> None:
    """Ask to be called with the model."""
    _add("model_loaded", callback, name)


def on_before_ui(callback: Callable[..., Any], *, name: str | None = None) -> None:
    """Ask to be called before the UI is made."""
    _add("before_ui", callback, name)


def on_infotext_pasted(callback: Callable[..., Any], *, name: str | None = None) -> None:
    """Ask to be called with (infotext, fields); the fields may be changed."""
    _add("infotext_pasted", callback, name)


def on_script_unloaded(callback: Callable[..., Any], *, name: str | None = None) -> None:
    """Ask to be called before Reload UI."""
    _add("script_unloaded", callback, name)


def on_cfg_denoiser(callback: Callable[..., Any], *, name: str | None = None) -> None:
    """Ask to be called before each call of the denoiser."""
    _add("cfg_denoiser", callback, name)


def remove_callbacks_for_function(function: Callable[..., Any]) -> None:
    """Forget a callback."""
    for callbacks in [*callback_map.values(), *ordered_callbacks_map.values()]:
        callbacks[:] = [callback for callback in callbacks if callback.callback != function]


def app_started_callback(demo: Any, app: Any) -> None:
    """Run those callbacks."""
    _run("app_started", ordered_callbacks("app_started"), demo, app)


def model_loaded_callback(model: Any) -> None:
    """Run those callbacks."""
    _run("model_loaded", ordered_callbacks("model_loaded"), model)


def before_ui_callback() -> None:
    """Run those callbacks: the last one first."""
    _run("before_ui", reversed(ordered_callbacks("before_ui")))


def infotext_pasted_callback(infotext: str, fields: dict[str, Any]) -> None:
    """Run those callbacks."""
    _run("infotext_pasted", ordered_callbacks("infotext_pasted"), infotext, fields)


def script_unloaded_callback() -> None:
    """Run those callbacks: the last one first."""
    _run("script_unloaded", reversed(ordered_callbacks("script_unloaded")))


def cfg_denoiser_callback(params: Any) -> None:
    """Run those callbacks."""
    _run("cfg_denoiser", ordered_callbacks("cfg_denoiser"), params)
