"""The built-in Lora extension's own patches, which must be gone before weights are patched here."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import torch

__all__ = ["calm_builtin"]


def calm_builtin(models: Iterable[Any]) -> None:
    """Make the built-in give back what it has patched, before weights are patched here.

    It would do so at some later forward pass, by writing its copies over what is there by then. It has patched
    something if it was the owner until the last Reload UI, or if loractl had the tag.
    """
    builtin = sys.modules.get("networks")
    if builtin is None or not hasattr(builtin, "network_restore_weights_from_backup"):
        return
    builtin.load_networks([])
    # Not by its list of what is patched: loractl empties that at every step.
    with torch.no_grad():
        for module in (module for model in models for module in model.modules()):
            if any(getattr(module, f"network_{kind}_backup", None) is not None for kind in ("weights", "bias")):
                builtin.network_restore_weights_from_backup(module)
                builtin.network_reset_cached_weight(module)
