"""Hosts: one package a program that the extension can live in. Only here may `modules.*` and gradio be imported."""

from __future__ import annotations

import importlib.util
from types import ModuleType


class UnsupportedHostError(Exception):
    """This process is no program that the extension knows."""


def host_of_this_process() -> ModuleType:
    """Return the package for the program that runs here, told by what it has and not by its version."""
    if importlib.util.find_spec("modules_forge") is not None:
        raise UnsupportedHostError(
            "this is a Forge, which keeps the weights itself and undoes changes from outside; use its own LoRA"
        )
    from modules import sd_models, ui_extra_networks

    wanted = {
        "sd_models.reuse_model_from_already_loaded": hasattr(sd_models, "reuse_model_from_already_loaded"),
        "ui_extra_networks.ExtraNetworksPage": hasattr(ui_extra_networks, "ExtraNetworksPage"),
    }
    if not all(wanted.values()):
        lacking = ", ".join(name for name, there in wanted.items() if not there)
        raise UnsupportedHostError(f"this WebUI has no {lacking}; version 1.10 has")
    from . import a1111

    return a1111
