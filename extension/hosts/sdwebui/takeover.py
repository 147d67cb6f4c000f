"""Taking the place of the built-in Lora extension, whether it is enabled or not, and in whatever order both load.

The WebUI has one table from tag to owner, in which the last one wins, and runs `before_ui` callbacks from the last
registered to the first; so the own callback is moved to the front, to run when everybody else's has. Nothing of the
built-in is changed: without our registrations, after the next Reload UI, it is all there again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from modules import errors, extra_networks, script_callbacks, scripts, shared, ui_extra_networks

from ...console import say
from .settings import BUILTIN_KEY

_ALIASES = ("lyco", "loractl")
_BUILTINS = ("Lora", "sd_forge_lora")  # the names of its folder, in Forge Neo the second


def run_last(category: str, function: Callable[..., Any]) -> None:
    """Make a `before_ui` callback that was just registered run after all others."""
    callbacks = script_callbacks.callback_map[f"callbacks_{category}"]
    own = next(callback for callback in callbacks if callback.callback is function)
    callbacks.remove(own)
    callbacks.insert(0, own)


def take_tags(owner: Any, undo: ExitStack) -> None:
    """Own `<lora:…>`, `<lyco:…>` and `<loractl:…>`; the built-in sees no tag, so its patches of torch stay idle."""
    for table in (extra_networks.extra_network_registry, extra_networks.extra_network_aliases):
        undo.callback(_put_back, table, dict(table))
    _retire_builtin_callbacks(undo)
    _register(owner)


def _put_back(table: dict[str, Any], before: dict[str, Any]) -> None:
    for name in ("lora", *_ALIASES):
        table.pop(name, None)
        if name in before:
            table[name] = before[name]


def _register(owner: Any) -> None:
    extra_networks.register_extra_network(owner)
    for alias in _ALIASES:
        extra_networks.register_extra_network_alias(owner, alias)


def take_page(page: Any, undo: ExitStack) -> None:
    """Show one Lora page: ours."""
    undo.callback(_show_pages, list(ui_extra_networks.extra_pages))
    ui_extra_networks.extra_pages[:] = [other for other in ui_extra_networks.extra_pages if other.name != page.name]
    ui_extra_networks.register_page(page)


def _show_pages(pages: list[Any]) -> None:
    """Show just these; the WebUI hands out pictures of the pages that it is told of."""
    ui_extra_networks.extra_pages.clear()
    for page in pages:
        ui_extra_networks.register_page(page)


def _retire_builtin_callbacks(undo: ExitStack) -> None:
    """Take out what the built-in would do a second time: its API routes, and mending of pasted prompts.

    Those that undo its patches of torch and name the model's layers, which other extensions read, stay.
    """
    folder = builtin_folder()
    if folder is None:
        return
    for category in ("app_started", "infotext_pasted"):
        callbacks = script_callbacks.callback_map[f"callbacks_{category}"]
        retired = [callback for callback in callbacks if folder in Path(callback.script).parents]
        undo.callback(script_callbacks.ordered_callbacks_map.pop, category, None)
        undo.callback(callbacks.extend, retired)
        callbacks[:] = [callback for callback in callbacks if callback not in retired]
        script_callbacks.ordered_callbacks_map.pop(category, None)


def builtin_folder() -> Path | None:
    """Return the folder of the built-in extension if it is loaded."""
    builtin = sys.modules.get("networks")
    if builtin is None or not hasattr(builtin, "loaded_networks"):
        return None
    return Path(builtin.__file__ or "").parent


def renew_builtin_list(files: Iterable[Path]) -> None:
    """Have the built-in read its folders again where its list lacks one of these files, or has one that is gone.

    Other extensions ask `networks.available_networks` which LoRAs there are; the built-in's own Refresh, which renewed
    it, is ours now. Its failure is its own matter: it costs nobody our page.
    """
    builtin: Any = sys.modules.get("networks")
    listed = getattr(builtin, "available_networks", None)
    if builtin_folder() is None or listed is None or not hasattr(builtin, "list_available_networks"):
        return
    lacks = any(path.stem not in listed for path in files)
    if lacks or not all(Path(getattr(known, "filename", "")).is_file() for known in list(listed.values())):
        try:
            builtin.list_available_networks()
        except Exception:
            errors.report("[lora-runtime] the built-in Lora extension could not list its files anew", exc_info=True)


def switch_builtin() -> None:
    """Put the built-in into the WebUI's list of disabled extensions, or take it out, as our setting says."""
    opts = shared.opts
    others = [name for name in opts.disabled_extensions if name not in _BUILTINS]
    folder = builtin_folder()
    if not getattr(opts, BUILTIN_KEY):
        opts.disabled_extensions = others
    elif folder is not None:  # else it is not loaded: it is in the list by now
        opts.disabled_extensions = [*others, folder.name]


def owns_tags(owner: Any) -> bool:
    """Return whether `<lora:…>` is still ours: others may take it at the start of each picture, as loractl does."""
    return extra_networks.extra_network_registry.get(owner.name) is owner


def takes_back(owner: Any) -> bool:
    """Take the tags back from loractl, whose syntax is read here too; return whether it had them."""
    there = extra_networks.extra_network_registry.get(owner.name)
    if there is owner or not type(there).__module__.startswith("loractl."):
        return False
    _register(owner)
    return True


def owner_of_tags() -> str:
    """Return the name of the extension whose the tag is, for a notice."""
    owner = type(extra_networks.extra_network_registry.get("lora")).__module__.partition(".")[0]
    return {"extra_networks_lora": "the built-in extension"}.get(owner, owner)


# Extensions that work on the LoRAs which the built-in has loaded, by a piece of their folder's name.
_BESIDE = {
    "loractl": "loractl's syntax is read here too, and it does nothing itself, unless the settings leave it the tags",
    "lora-block-weight": "LoRA Block Weight's syntax and presets are read here too, and its own work has no effect",
    "additional-networks": "Additional Networks applies LoRAs of its own, on top of these",
}


def tell_owner() -> None:
    """Say in the console whose the tags are, where another extension is loaded that counts on the built-in."""
    folders = {Path(data.basedir).name.lower().replace("_", "-") for data in scripts.scripts_data}
    found = [said for piece, said in _BESIDE.items() if any(piece in folder for folder in folders)]
    if found:
        say(f"owns <lora:…> and <lyco:…>. {'; '.join(found)}")
