"""Hosts: one package a program that the extension can live in. Only here may `modules.*` and gradio be imported."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable
from types import ModuleType
from typing import Any

# What is used of each WebUI, beside what every version of the last years has.
_NEEDED_OF_ALL = (
    "extra_networks.re_extra_net",
    "processing.StableDiffusionProcessing.get_conds_with_caching",
    "prompt_parser.MulticondLearnedConditioning",
    "prompt_parser.SdConditioning",
    "script_callbacks.callback_map",
    "script_callbacks.ordered_callbacks_map",
    "script_callbacks.remove_callbacks_for_function",
    "sd_models.model_data",
    "ui_extra_networks.ExtraNetworksPage",
    "ui_extra_networks.extra_pages",
    "ui_extra_networks_user_metadata.UserMetadataEditor",
)
_NEEDED_OF_A1111 = ("sd_models.reload_model_weights", "sd_models.reuse_model_from_already_loaded")
# Of Forge Neo, by full names.
_NEEDED_OF_NEO = (
    "backend.args.dynamic_args",
    "backend.patcher.base.ModelPatcher.partially_load",
    "backend.patcher.base.LowVramPatch",
    "backend.patcher.unet.UnetPatcher.add_conditioning_modifier",
    "backend.patcher.lora.weight_adapter.WeightAdapterBase.calculate_weight",
    "backend.text_processing.textual_inversion.EmbeddingDatabase.register_embedding_by_name",
)
# Of SD.Next, by full names.
_NEEDED_OF_SDNEXT = (
    "modules.extra_networks.activate_filtered",
    "modules.extra_networks.re_extra_net",
    "modules.logger.log",
    "modules.lora.lora_apply.network_apply_weights",
    "modules.lora.lora_diffusers.diffuser_loaded",
    "modules.modeldata.model_data",
    "modules.prompt_parser_diffusers.PromptEmbedder.clone_embeds",
    "modules.prompt_parser_diffusers.PromptEmbedder.encode",
    "modules.script_callbacks.on_before_process",
    "modules.script_callbacks.remove_callbacks_for_function",
    "modules.sd_models.set_diffuser_offload",
    "modules.sd_offload.apply_balanced_offload_to_module",
    "modules.sd_offload.disable_offload",
)


class UnsupportedHostError(Exception):
    """This process is no program that the extension knows."""


def host_of_this_process() -> ModuleType:
    """Return the package for the program that runs here, told by what it has and not by its version."""
    if importlib.util.find_spec("modules_forge") is not None:
        return _forge()
    if _has("modules.scripts_manager"):
        return _sdnext()
    lacking = _lacking(_NEEDED_OF_ALL + _NEEDED_OF_A1111, "modules.")
    if lacking:
        raise UnsupportedHostError(f"this WebUI has no {', '.join(lacking)}; versions 1.9.4 and later have")
    from . import a1111

    return a1111


def _forge() -> ModuleType:
    """Return the package for Forge Neo; other Forges keep the weights in ways of their own."""
    lacking = _lacking(_NEEDED_OF_NEO) or _lacking(_NEEDED_OF_ALL, "modules.")
    if lacking:
        raise UnsupportedHostError(
            "this is a Forge, which keeps the weights itself and undoes changes from outside; use its own LoRA. "
            f"Forge Neo is supported from 2.26 on; this one has no {lacking[0]}"
        )
    from . import forge_neo

    return forge_neo


def _sdnext() -> ModuleType:
    """Return the package for SD.Next."""
    lacking = _lacking(_NEEDED_OF_SDNEXT)
    if lacking:
        raise UnsupportedHostError(
            f"this SD.Next has no {', '.join(lacking)}; supported are those of 2026, from July on. Use its own LoRA"
        )
    from . import sdnext

    return sdnext


def _lacking(names: Iterable[str], prefix: str = "") -> list[str]:
    return [name for name in names if not _has(prefix + name)]


def _has(name: str) -> bool:
    """Return whether something is there: a module as far as the name leads to one, then attributes."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:count]))
        except ImportError:
            continue
        break
    else:
        return False
    for attribute in parts[count:]:
        if not hasattr(found, attribute):
            return False
        found = getattr(found, attribute)
    return True
