"""What PEFT and diffusers write about the training into a file's metadata: the alphas that no key holds."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Training", "read_training"]

_KEY = "lora_adapter_metadata"  # diffusers: {"unet.lora_alpha": 8, "unet.rank_pattern": {}, …}
_FIELDS = ("lora_alpha", "alpha_pattern", "use_rslora")
_LARGEST = 1e12  # of an alpha; also keeps out NaN, infinity and integers that no float can hold
# PEFT's patterns are regular expressions from a file: one with nested repetition could run for ever.
_SAFE_PATTERN = re.compile(r"\^?[\w.\\-]+\$?")


@dataclass(frozen=True)
class Training:
    """The settings of a file, by component prefix ("unet", or "" for a file of one model)."""

    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def alpha_of(self, stem: str) -> tuple[float | None, bool]:
        """Return the alpha of a module and whether its scale is alpha/√rank (rsLoRA); None where nothing is said."""
        if not self.settings:
            return None, False
        found = next((prefix for prefix in self.settings if prefix and stem.startswith(f"{prefix}.")), "")
        settings = self.settings.get(found, {})
        name = stem[len(found) + 1 :] if found else stem
        alpha = settings.get("lora_alpha")
        for pattern, value in settings.get("alpha_pattern", {}).items():
            if re.match(rf"(.*\.)?({pattern})$", name):
                alpha = value
                break
        return (None if alpha is None else float(alpha)), bool(settings.get("use_rslora"))


def read_training(metadata: Mapping[str, str]) -> Training:
    """Return the settings in a file's metadata; ValueError where they are there and cannot be read."""
    raw = metadata.get(_KEY)
    if raw is None:
        return Training()
    try:
        found = json.loads(raw)
        if not isinstance(found, dict):
            raise ValueError("no table")
        settings: dict[str, dict[str, Any]] = {}
        for key, value in found.items():
            prefix, _, name = key.rpartition(".")
            if name in _FIELDS:
                settings.setdefault(prefix, {})[name] = value
        for setting in settings.values():
            _check(setting)
    except (ValueError, TypeError, AttributeError, RecursionError, re.error) as error:
        raise ValueError(f"its metadata {_KEY} cannot be read ({error})") from None
    return Training(settings)


def _check(setting: dict[str, Any]) -> None:
    """Check the settings of one component; what is left out counts as empty."""
    patterns = setting["alpha_pattern"] = dict(setting.get("alpha_pattern") or {})
    alphas = [*patterns.values(), *([setting["lora_alpha"]] if "lora_alpha" in setting else [])]
    for alpha in alphas:
        if type(alpha) not in (int, float) or not -_LARGEST < alpha < _LARGEST:
            raise ValueError(f"alpha {alpha!r:.40} is no number of that size")
    for pattern in patterns:
        if _SAFE_PATTERN.fullmatch(pattern) is None:
            raise ValueError(f"the pattern {pattern!r:.40} is more than a name")
        re.compile(pattern)
