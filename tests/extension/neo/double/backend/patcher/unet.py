"""The patcher of a denoiser."""

from __future__ import annotations

from typing import Any

from backend.patcher.base import ModelPatcher


class UnetPatcher(ModelPatcher):
    """It changes conditions before each step."""

    def add_conditioning_modifier(self, modifier: Any) -> None:
        self.model_options["conditioning_modifiers"] = [
            *self.model_options.get("conditioning_modifiers", []),
            modifier,
        ]
