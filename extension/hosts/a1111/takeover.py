"""Taking the place of the built-in Lora extension, whether it is enabled or not, and in whatever order both load.

The WebUI has one table from tag to owner, in which the last one wins, and runs `before_ui` callbacks from the last
registered to the first; so the own callback is moved to the front, to run when everybody else's has. Nothing of the
built-in is changed: without our registrations, after the next Reload UI, it is all there again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from modules import extra_networks, script_callbacks, ui_extra_networks


def run_last(category: str, function: Callable[..., Any]) -> None:
    """Make a `before_ui` callback that was just registered run after all others."""
    callbacks = script_callbacks.callback_map[f"callbacks_{category}"]
    own = next(callback for callback in callbacks if callback.callback is function)
    callbacks.remove(own)
    callbacks.insert(0, own)


def take_tags(network: Any) -> None:
    """Own `<lora:…>` and `<lyco:…>`; the built-in never sees a tag, so its patches of torch stay idle."""
    _retire_builtin_callbacks()
    extra_networks.register_extra_network(network)
    extra_networks.register_extra_network_alias(network, "lyco")


def take_page(page: Any) -> None:
    """Show one Lora page: ours."""
    ui_extra_networks.extra_pages[:] = [other for other in ui_extra_networks.extra_pages if other.name != page.name]
    ui_extra_networks.register_page(page)


def _retire_builtin_callbacks() -> None:
    """Take out what the built-in would do a second time: its API routes, and mending of pasted prompts.

    Those that undo its patches of torch and name the model's layers, which other extensions read, stay.
    """
    folder = builtin_folder()
    if folder is None:
        return
    for category in ("app_started", "infotext_pasted"):
        callbacks = script_callbacks.callback_map[f"callbacks_{category}"]
        callbacks[:] = [callback for callback in callbacks if folder not in Path(callback.script).parents]
        script_callbacks.ordered_callbacks_map.pop(category, None)


def builtin_folder() -> Path | None:
    """Return the folder of the built-in extension if it is loaded."""
    networks = sys.modules.get("networks")
    if networks is None or not hasattr(networks, "loaded_networks"):
        return None
    return Path(networks.__file__ or "").parent


def others() -> list[str]:
    """Return the names of loaded extensions that work on the built-in's LoRAs, and so have no effect on ours."""
    from modules import scripts

    known = {
        "sd_webui_loractl": "loractl",
        "sd-webui-loractl": "loractl",
        "sd-webui-lora-block-weight": "LoRA Block Weight",
        "sd-webui-additional-networks": "Additional Networks",
    }
    folders = {Path(data.basedir).name.lower() for data in scripts.scripts_data}
    return sorted({name for folder, name in known.items() if folder in folders})
