"""The checkpoints that the WebUI holds. Asking for `shared.sd_model` would load one."""

from __future__ import annotations

from typing import Any

from modules import sd_models, shared

__all__ = ["chosen_family", "chosen_model", "loaded_model"]


def loaded_model() -> Any | None:
    """Return the checkpoint that was used last, None while there is none."""
    return sd_models.model_data.sd_model


def chosen_model() -> Any | None:
    """Return the checkpoint that the user has chosen, if it is loaded, else the one that was used last; None without.

    After a refiner, or a checkpoint for the second pass, these differ.
    """
    chosen = getattr(shared.opts, "sd_model_checkpoint", None)
    for model in sd_models.model_data.loaded_sd_models:
        if getattr(getattr(model, "sd_checkpoint_info", None), "title", "") == chosen:
            return model
    return loaded_model()


def chosen_family() -> str:
    """Return the family of the checkpoint that is chosen, or "" while there is none."""
    model = chosen_model()
    if model is None:
        return ""
    families = (("is_sdxl", "SDXL"), ("is_sd3", "SD3"), ("is_sd2", "SD2"), ("is_sd1", "SD1"))
    return next((name for attribute, name in families if getattr(model, attribute, False)), "")
