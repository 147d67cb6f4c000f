"""Hosts: one package a program that the extension can live in. Only here may `modules.*` and gradio be imported."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType
from typing import Any

# What is used of the WebUI, beside what every version of the last years has.
_NEEDED = (
    "extra_networks.re_extra_net",
    "processing.StableDiffusionProcessing.get_conds_with_caching",
    "prompt_parser.MulticondLearnedConditioning",
    "prompt_parser.SdConditioning",
    "script_callbacks.callback_map",
    "script_callbacks.ordered_callbacks_map",
    "script_callbacks.remove_callbacks_for_function",
    "sd_models.model_data",
    "sd_models.reload_model_weights",
    "sd_models.reuse_model_from_already_loaded",
    "ui_extra_networks.ExtraNetworksPage",
    "ui_extra_networks.extra_pages",
    "ui_extra_networks_user_metadata.UserMetadataEditor",
)


class UnsupportedHostError(Exception):
    """This process is no program that the extension knows."""


def host_of_this_process() -> ModuleType:
    """Return the package for the program that runs here, told by what it has and not by its version."""
    if importlib.util.find_spec("modules_forge") is not None:
        raise UnsupportedHostError(
            "this is a Forge, which keeps the weights itself and undoes changes from outside; use its own LoRA"
        )
    lacking = [name for name in _NEEDED if not _has(name)]
    if lacking:
        raise UnsupportedHostError(f"this WebUI has no {', '.join(lacking)}; versions 1.9.4 and later have")
    from . import a1111

    return a1111


def _has(name: str) -> bool:
    module, *attributes = name.split(".")
    try:
        found: Any = importlib.import_module(f"modules.{module}")
    except ImportError:
        return False
    for attribute in attributes:
        if not hasattr(found, attribute):
            return False
        found = getattr(found, attribute)
    return True
