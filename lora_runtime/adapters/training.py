"""What PEFT and diffusers write about the training, into the metadata or beside the file: alphas that no key holds."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from lora_runtime.errors import LoraFileError

__all__ = ["CONFIG_NAME", "WEIGHTS_NAME", "Training", "read_adapter_config", "read_training"]

WEIGHTS_NAME, CONFIG_NAME = "adapter_model.safetensors", "adapter_config.json"  # in a folder that PEFT has saved

_KEY = "lora_adapter_metadata"  # diffusers: {"unet.lora_alpha": 8, "unet.rank_pattern": {}, …}
_FIELDS = ("lora_alpha", "alpha_pattern", "use_rslora")
_LARGEST = 1e12  # of an alpha; also keeps out NaN, infinity and integers that no float can hold
# PEFT's patterns are regular expressions from a file: one with nested repetition could run for ever.
_SAFE_PATTERN = re.compile(r"\^?[\w.\\-]+\$?")
_MOST_PATTERNS = 2048  # more than a model has modules
_MOST_COMPONENTS = 8  # of a pipeline
_MOST_TRIALS = 10_000_000  # of a pattern on a name: a second or two
_LARGEST_TEXT = 1 << 20  # characters of settings in the metadata; real ones have some thousand
_WRAPPER = "base_model.model."  # what PEFT puts before a model's own names
# These begin by changing the weights of the model, so their factors are right only on the changed ones.
_CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class Training:
    """The settings of a file, by component prefix ("unet", or "" for a file of one model)."""

    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    # Of a tuner whose scale is alpha/r whatever its factors look like: alpha, r and their exceptions by pattern.
    ratio: Mapping[str, Any] | None = None
    # What else a tuner's formula depends on, by the names of its configuration.
    options: Mapping[str, Any] = field(default_factory=dict)

    def check(self, names: int) -> None:
        """Raise ValueError where it would take too long to try all patterns on so many names."""
        tables = [*self.settings.values(), self.ratio or {}]
        patterns = sum(len(table.get(name, {})) for table in tables for name in ("alpha_pattern", "rank_pattern"))
        if patterns * names > _MOST_TRIALS:
            raise ValueError(f"{patterns:,} patterns of alphas and ranks are too many for {names:,} keys")

    def alpha_of(self, stem: str) -> tuple[float | None, bool]:
        """Return the alpha of a module and whether its scale is alpha/√rank (rsLoRA); None where nothing is said."""
        if not self.settings:
            return None, False
        found = next((prefix for prefix in self.settings if prefix and stem.startswith(f"{prefix}.")), "")
        settings = self.settings.get(found, {})
        name = stem[len(found) + 1 :] if found else stem
        alpha = _matching(settings.get("alpha_pattern", {}), name, settings.get("lora_alpha"))
        return (None if alpha is None else float(alpha)), bool(settings.get("use_rslora"))

    def scale_of(self, stem: str) -> float | None:
        """Return the scale of a module where it is said apart from its factors (PEFT's LoHa and LoKr), or None."""
        if self.ratio is None:
            return None
        alpha = _matching(self.ratio["alpha_pattern"], stem, self.ratio["alpha"])
        return float(alpha) / float(_matching(self.ratio["rank_pattern"], stem, self.ratio["r"]))


def _matching(patterns: Mapping[str, Any], name: str, default: Any) -> Any:
    """Return the value of the first pattern that means the module, as PEFT reads patterns."""
    name = name.removeprefix(_WRAPPER)
    return next((value for pattern, value in patterns.items() if _compiled(pattern).match(name)), default)


@lru_cache(maxsize=_MOST_PATTERNS * _MOST_COMPONENTS)
def _compiled(pattern: str) -> re.Pattern[str]:
    """Return a pattern as PEFT reads it; the cache of `re` is too small for a pattern of each module of a model."""
    return re.compile(rf"(.*\.)?({pattern})$")


def read_adapter_config(raw: bytes) -> Training:
    """Return the settings in PEFT's adapter_config.json; ValueError where it cannot be read.

    LoraFileError where the factors are no change of the model's own weights (PiSSA, OLoRA, CorDA, …). Tuners whose
    alpha is in no config, or that are not known, give no settings: their keys tell what they are.
    """
    try:
        config = json.loads(raw)
        kind = config.get("peft_type")
        start = str(config.get("init_lora_weights", ""))
        if kind == "LORA" and start.lower().startswith(_CHANGE_THE_BASE):
            raise LoraFileError(
                f"its training began by changing the model's weights ({start}), and its factors are right only on "
                "those; save it again with path_initial_model_for_weight_conversion"
            )
        if kind == "LORA":
            setting = {name: config[name] for name in _FIELDS if config.get(name) is not None}
            _check(setting)
            return Training({"": setting})
        if kind in ("LOHA", "LOKR"):
            ratio = {name: dict(config.get(name) or {}) for name in ("alpha_pattern", "rank_pattern")}
            ratio |= {"alpha": config["alpha"], "r": config["r"]}
            for name, number in (("alpha_pattern", "alpha"), ("rank_pattern", "r")):
                _check({"lora_alpha": ratio[number], "alpha_pattern": ratio[name]})
            if not all(rank > 0 for rank in (ratio["r"], *ratio["rank_pattern"].values())):
                raise ValueError("a rank that is not positive")
            return Training(ratio=ratio)
        return Training(options=_options(kind, config))
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError, re.error) as error:
        raise ValueError(f"the {CONFIG_NAME} beside it cannot be read ({error})") from None


def _options(kind: object, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the formula of a tuner depends on, beside its tensors."""
    if kind == "ADALORA":
        options = {name: config[name] for name in ("lora_alpha", "init_r")}
        for number in options.values():
            _check({"lora_alpha": number})
        if options["init_r"] < 0:
            raise ValueError("a rank that is negative")
        return options
    if kind == "HRA":
        return {"apply_GS": bool(config.get("apply_GS"))}
    if kind == "MISS":
        return {"init_weights": config.get("init_weights")}
    if kind == "IA3":
        listed = config.get("feedforward_modules") or []
        return {"feedforward_modules": listed if isinstance(listed, str) else [str(name) for name in listed]}
    return {}


def read_training(metadata: Mapping[str, str]) -> Training:
    """Return the settings in a file's metadata; ValueError where they are there and cannot be read."""
    raw = metadata.get(_KEY)
    if raw is None:
        return Training()
    try:
        if len(raw) > _LARGEST_TEXT:
            raise ValueError(f"it has {len(raw):,} characters, more than {_LARGEST_TEXT:,}")
        found = json.loads(raw)
        if not isinstance(found, dict):
            raise ValueError("no table")
        settings: dict[str, dict[str, Any]] = {}
        for key, value in found.items():
            prefix, _, name = key.rpartition(".")
            if name in _FIELDS:
                settings.setdefault(prefix, {})[name] = value
        if len(settings) > _MOST_COMPONENTS:
            raise ValueError(f"{len(settings):,} components are more than {_MOST_COMPONENTS}")
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
    if len(patterns) > _MOST_PATTERNS:
        raise ValueError(f"{len(patterns):,} patterns are more than {_MOST_PATTERNS:,}")
    for pattern in patterns:
        if _SAFE_PATTERN.fullmatch(pattern) is None:
            raise ValueError(f"the pattern {pattern!r:.40} is more than a name")
        re.compile(pattern)
