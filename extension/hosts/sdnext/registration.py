"""Everything that is registered with SD.Next, and when.

script is loaded     register(): callbacks; methods that encode prompts are wrapped
before_ui            the tags `lora`, `lyco` and `loractl`; the program's own LoRA got the first before
before_process       a picture begins: is the tag still ours
restart              script_unloaded: weights and the program's methods are as they were; the script is loaded anew
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from modules import extra_networks, script_callbacks
from modules.logger import log

from .encoding import PromptEncoding
from .tags import OTHER_KINDS, LoraTags, OtherKind

__all__ = ["register"]


def register(owner: LoraTags, encoding: PromptEncoding) -> None:
    """Register everything, or nothing: where a step fails, here or before the UI is built, the others are undone."""
    undo = ExitStack()

    def before_ui() -> None:
        try:
            _take_tags(owner, undo)
            log.info("LoRA Runtime: owns <lora:…>; SD.Next's own LoRA is idle")
        except Exception as error:
            undo.close()
            log.error("LoRA Runtime: not started, SD.Next's own LoRA stays: %s: %s", type(error).__name__, error)

    with ExitStack() as failed:
        failed.push(undo)
        for add_callback, function in (
            (script_callbacks.on_before_ui, before_ui),
            (script_callbacks.on_before_process, owner.before_batch),
            (script_callbacks.on_script_unloaded, undo.close),
        ):
            undo.callback(script_callbacks.remove_callbacks_for_function, function)
            add_callback(function)
        undo.callback(owner.stop)
        undo.callback(encoding.remove)
        encoding.install()
        failed.pop_all()


def _take_tags(owner: LoraTags, undo: ExitStack) -> None:
    """Own the tags; what had them before has them again afterwards."""
    table: dict[str, Any] = extra_networks.extra_network_registry
    networks: list[Any] = [owner, *map(OtherKind, OTHER_KINDS)]
    for network in networks:
        before = table.get(network.name)
        undo.callback(_give_back, network, before)
        extra_networks.register_extra_network(network)


def _give_back(network: Any, before: Any) -> None:
    table = extra_networks.extra_network_registry
    if table.get(network.name) is network:  # else somebody has taken it since
        if before is None:
            del table[network.name]
        else:
            table[network.name] = before
