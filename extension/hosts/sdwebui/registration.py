"""Everything that is registered with the WebUI, and in which order.

script is loaded     register(): options; callbacks are registered; functions of the WebUI are wrapped
before_ui, last      takeover: the tags `lora` and `lyco`, the page, in place of the built-in extension's
app_started          routes
Reload UI            script_unloaded: weights and the WebUI's functions are as they were; the script is loaded anew
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

from modules import errors, script_callbacks

from ...console import say
from ...library.shelf import Shelf
from ...panel.routes import add_routes
from . import axes, options, pasting, takeover
from .page import LoraPage
from .script import script_class
from .settings import Settings
from .tag_owner import TagOwner

__all__ = ["Parts", "Wrapper", "register"]


class Wrapper(Protocol):
    """Something that wraps functions of the WebUI between the two calls."""

    def install(self) -> None: ...
    def remove(self) -> None: ...


@dataclass(frozen=True)
class Parts:
    """What a host is served with.

    `wrappers` are installed last, and removed at Reload UI. `callbacks` are further functions to register with the
    WebUI, each with what registers it. `calm_builtin` makes the built-in extension give back what it has patched.
    """

    shelf: Shelf
    settings: Settings
    owner: TagOwner
    page: LoraPage
    wrappers: Sequence[Wrapper] = ()
    callbacks: Sequence[tuple[Callable[[Any], None], Callable[..., Any]]] = ()
    calm_builtin: Callable[[], None] = lambda: None


def register(parts: Parts) -> type[Any]:
    """Register everything; return the Script class that the WebUI looks for in the module that asked.

    All or nothing: everything is made and looked at by now, and where a step fails, here or before the UI is built, the
    earlier ones are undone, so that the built-in extension stays as it was.
    """
    parts.page.check()
    script = script_class(parts.owner)
    undo = ExitStack()

    def before_ui() -> None:
        try:
            options.define(parts.shelf, undo)
            takeover.take_tags(parts.owner, undo)
            takeover.take_page(parts.page, undo)
            parts.calm_builtin()
            axes.add(parts.shelf, parts.settings, undo)
            takeover.tell_owner()
        except Exception as error:
            errors.report("[lora-runtime] could not take the place of the built-in Lora extension", exc_info=True)
            undo.close()
            say(f"not started, the built-in Lora extension stays: {type(error).__name__}: {error}")

    def app_started(_: Any, app: Any) -> None:
        owner = parts.owner
        add_routes(app, parts.shelf, parts.page, owner.explain, owner.reported, owner.prompt_facts)

    def pasted(_: str, fields: dict[str, Any]) -> None:
        pasting.paste(fields, parts.shelf, parts.settings)

    def unload() -> None:
        for wrapper in parts.wrappers:
            wrapper.remove()
        for _, function in parts.callbacks:
            script_callbacks.remove_callbacks_for_function(function)
        parts.owner.stop()

    with ExitStack() as failed:
        failed.push(undo)
        undo.callback(parts.owner.stop)
        options.define(parts.shelf, undo)
        for add_callback, function in (
            (script_callbacks.on_before_ui, before_ui),
            (script_callbacks.on_app_started, app_started),
            (script_callbacks.on_infotext_pasted, pasted),
            (script_callbacks.on_script_unloaded, unload),
            *parts.callbacks,
        ):
            undo.callback(script_callbacks.remove_callbacks_for_function, function)
            add_callback(function)
        takeover.run_last("before_ui", before_ui)
        for wrapper in parts.wrappers:
            undo.callback(wrapper.remove)
            wrapper.install()
        failed.pop_all()
    return script
