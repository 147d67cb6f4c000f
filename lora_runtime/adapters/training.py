"""What PEFT and diffusers write about the training, into the metadata or beside the file: alphas that no key holds."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from lora_runtime.adapters.refusals import refusal
from lora_runtime.errors import LoraFileError

__all__ = ["CONFIGURED", "CONFIG_NAME", "WEIGHTS_NAMES", "Training", "read_adapter_config", "read_training"]

# In a folder that PEFT or MLX-LM has saved.
WEIGHTS_NAMES, CONFIG_NAME = ("adapter_model.safetensors", "adapters.safetensors"), "adapter_config.json"

CONFIGURED = "lora_adapter_metadata"  # diffusers: {"unet.lora_alpha": 8, "unet.rank_pattern": {}, …}
_FIELDS = ("lora_alpha", "alpha_pattern", "use_rslora")
_LARGEST = 1e12  # of an alpha; also keeps out NaN, infinity and integers that no float can hold
_MOST_NAMES = 100  # of modules that are saved whole: each key is compared with all
_MOST_TERMS = 100  # of OFT's series, each a product of matrices; five are usual
# PEFT's patterns are regular expressions from a file: one with nested repetition could run for ever.
_SAFE_PATTERN = re.compile(r"\^?[\w.\\-]+\$?")
_MOST_PARAMETERS = 1000
_EXPERTS = ("gate_up_proj", "down_proj")  # as transformers' modules have them
_MOST_PATTERNS = 2048  # more than a model has modules
_MOST_COMPONENTS = 8  # of a pipeline
_MOST_TRIALS = 10_000_000  # of a pattern on a name: a second or two
_LARGEST_TEXT = 1 << 20  # characters of settings in the metadata; real ones have some thousand
_WRAPPER = "base_model.model."  # what PEFT puts before a model's own names


@dataclass(frozen=True)
class Training:
    """The settings of a file, by component prefix ("unet", or "" for a file of one model)."""

    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    # Of a tuner whose scale is alpha/r whatever its factors look like: alpha, r and their exceptions by pattern.
    ratio: Mapping[str, Any] | None = None
    # What else a tuner's formula depends on, by the names of its configuration.
    options: Mapping[str, Any] = field(default_factory=dict)
    saved_whole: tuple[str, ...] = ()  # what the paths of modules end in that are in the file as they are to be
    biases: bool = False  # whether all biases of the model are
    # Ends of the names of parameters that factors are for, where their module is not enough (PEFT's target_parameters).
    parameters: tuple[str, ...] = ()

    def replaces(self, key: str) -> bool:
        """Return whether a key without any adapter's ending is a parameter that is saved whole."""
        path = key.removeprefix(_WRAPPER)
        if self.biases and path.endswith(".bias"):
            return True
        return any(f".{name}." in f".{path}" for name in self.saved_whole)

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

    def parameters_of(self, module: str) -> list[str]:
        """Return the names of the parameters of a module that factors are for, in the order in which PEFT nests them.

        The order is that in which the module has them, which no file tells: it is known of transformers' experts.
        ValueError for others.
        """
        if not self.parameters:
            return []
        ends = {name.rpartition(".")[2]: name for name in self.parameters}
        found = [last for last, name in ends.items() if f".{module}.{last}".endswith(f".{name}")]
        if len(found) > 1 and set(found) != set(_EXPERTS):
            raise ValueError(f"only the model tells which factors are for which of its parameters {', '.join(found)}")
        return sorted(found, key=lambda last: _EXPERTS.index(last) if last in _EXPERTS else 0)

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
    """Return the settings in PEFT's or MLX-LM's adapter_config.json; ValueError where it cannot be read.

    LoraFileError where the file holds no change of the model's own weights.
    """
    training, config = _read_tuner(raw), json.loads(raw)
    names = config.get("modules_to_save") or []
    if not isinstance(names, list) or len(names) > _MOST_NAMES:
        raise ValueError(f"the modules_to_save in the {CONFIG_NAME} beside it are no list of at most {_MOST_NAMES}")
    rows = config.get("token_indices", config.get("trainable_token_indices"))
    options = training.options if rows is None else {**training.options, "token_indices": rows}
    return replace(training, options=options, saved_whole=tuple(map(str, names)), biases=config.get("bias") == "all")


def _read_tuner(raw: bytes) -> Training:
    """Return the settings of the tuner; ValueError where they cannot be read.

    LoraFileError where the factors are no change of the model's own weights (PiSSA, prompt tuning, …). Tuners whose
    alpha is in no config, or that are not known, give no settings: their keys tell what they are.
    """
    try:
        config = json.loads(raw)
        kind = config.get("peft_type")
        if (reason := refusal(config)) is not None:
            raise LoraFileError(reason)
        if kind == "LORA":
            setting = {name: config[name] for name in _FIELDS if config.get(name) is not None}
            _check(setting)
            return Training({"": setting}, parameters=_parameters(config.get("target_parameters") or []))
        if kind is None and "lora_parameters" in config:  # MLX-LM's
            scale = config["lora_parameters"]["scale"]
            _check({"lora_alpha": scale})
            return Training(options={"mlx_scale": float(scale)})
        if kind in ("LOHA", "LOKR"):
            ratio = {name: dict(config.get(name) or {}) for name in ("alpha_pattern", "rank_pattern")}
            ratio |= {"alpha": config["alpha"], "r": config["r"]}
            for name, number in (("alpha_pattern", "alpha"), ("rank_pattern", "r")):
                _check({"lora_alpha": ratio[number], "alpha_pattern": ratio[name]})
            if not all(rank > 0 for rank in (ratio["r"], *ratio["rank_pattern"].values())):
                raise ValueError("a rank that is not positive")
            return Training(ratio=ratio, options={"peft_type": kind})
        return Training(options=_options(kind, config))
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError, re.error) as error:
        raise ValueError(f"the {CONFIG_NAME} beside it cannot be read ({error})") from None


# By tuner: the settings that its formula needs, and what PEFT takes where a configuration does not say.
_SETTINGS: Mapping[object, Mapping[str, bool | int | float | str]] = {
    "PVERA": {"sample_at_inference": False},
    "RANDLORA": {"randlora_alpha": 640.0},
    "VBLORA": {"topk": 2},
    "FOURIERFT": {"scaling": 150.0, "random_loc_seed": 777},
    "WAVEFT": {"scaling": 25.0, "random_loc_seed": 777, "wavelet_family": "db1", "use_idwt": True},
}


def _checked(config: Mapping[str, Any], name: str, default: bool | int | float | str) -> bool | int | float | str:
    """Return a setting of the kind that its default has; ValueError where it is of another, or out of bounds."""
    value: Any = config.get(name, default)
    if type(default) is float:
        _check({"lora_alpha": value})
        return float(value)
    if type(value) is not type(default) or (type(value) is int and not -(2**63) <= value < 2**63):
        raise ValueError(f"{name} {value!r:.40} is none")
    return value


def _parameters(listed: object) -> tuple[str, ...]:
    """Return the ends of names of parameters; each module is compared with all, so there may not be too many."""
    if not isinstance(listed, list) or len(listed) > _MOST_PARAMETERS:
        raise ValueError(f"target_parameters is no list of at most {_MOST_PARAMETERS} names")
    return tuple(str(name) for name in listed)


def _options(kind: object, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the formula of a tuner depends on, beside its tensors."""
    if kind == "ADALORA":
        options = {name: config[name] for name in ("lora_alpha", "init_r")}
        for number in options.values():
            _check({"lora_alpha": number})
        if options["init_r"] < 0:
            raise ValueError("a rank that is negative")
        return options
    if kind in _SETTINGS:
        return {name: _checked(config, name, default) for name, default in _SETTINGS[kind].items()}
    if kind == "HRA":
        return {"apply_GS": bool(config.get("apply_GS"))}
    if kind == "MISS":
        return {"init_weights": config.get("init_weights")}
    if kind == "OFT":
        return _oft_options(config)
    if kind == "ROAD":
        return _road_options(config)
    if kind == "SUPERTUNING" and config.get("lora_alpha") is not None:
        _check({"lora_alpha": config["lora_alpha"]})
        return {"lora_alpha": config["lora_alpha"]}
    if kind == "GRALORA":
        return {"alpha": _alpha(config)}
    if kind == "DEFT":
        method = _one_of(config, "decomposition_method", ("relu", "qr"))
        return {"alpha": _alpha(config), "para": bool(config.get("para")), "decomposition_method": method}
    if kind == "IA3":
        listed = config.get("feedforward_modules") or []
        return {"feedforward_modules": listed if isinstance(listed, str) else [str(name) for name in listed]}
    return {}


def _alpha(config: Mapping[str, Any]) -> float | None:
    """Return the alpha of a tuner that calls it so, or None."""
    alpha = config.get("alpha")
    if alpha is None:
        return None
    _check({"lora_alpha": alpha})
    return float(alpha)


def _one_of(config: Mapping[str, Any], name: str, known: tuple[str, ...]) -> str:
    """Return a setting that is one of a few words; the first where it is not there."""
    value = config.get(name, known[0])
    if value not in known:
        raise ValueError(f"{name} {value!r:.40} is none of {', '.join(known)}")
    return str(value)


def _road_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return which outputs RoAd turns together, with PEFT's defaults."""
    size = config.get("group_size", 64)
    if type(size) is not int or size <= 0:
        raise ValueError(f"group_size {size!r:.40} is no number of outputs")
    return {"variant": _one_of(config, "variant", ("road_1", "road_2", "road_4")), "group_size": size}


def _oft_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return how OFT's rotations are made; LoraFileError where they are those of PEFT before 0.14."""
    if "oft_block_size" not in config:
        raise LoraFileError(
            "its OFT is that of PEFT before 0.14, which is another formula; train it again with a newer"
        )
    terms, eps = config.get("num_cayley_neumann_terms", 5), config.get("eps", 6e-5)
    if type(terms) is not int or not 0 < terms <= _MOST_TERMS:
        raise ValueError(f"num_cayley_neumann_terms {terms!r:.40} is no number from 1 to {_MOST_TERMS}")
    if type(eps) not in (int, float) or not 0 <= eps < _LARGEST:
        raise ValueError(f"eps {eps!r:.40} is no number of that size")
    version = re.match(r"(\d{1,9})\.(\d{1,9})", str(config.get("peft_version", "")))
    return {
        "use_cayley_neumann": bool(config.get("use_cayley_neumann", True)),
        "num_cayley_neumann_terms": terms,
        # 0.18 is the first version that writes its number, and the first that counts the last power once.
        "last_halved": version is not None and (int(version[1]), int(version[2])) >= (0, 18),
        "coft": bool(config.get("coft")),
        "eps": eps,
        "block_share": bool(config.get("block_share")),
    }


def read_training(metadata: Mapping[str, str]) -> Training:
    """Return the settings in a file's metadata; ValueError where they are there and cannot be read.

    LoraFileError where they say that the file holds no change of the model's own weights.
    """
    raw = metadata.get(CONFIGURED)
    if raw is None:
        return Training()
    try:
        if len(raw) > _LARGEST_TEXT:
            raise ValueError(f"it has {len(raw):,} characters, more than {_LARGEST_TEXT:,}")
        found = json.loads(raw)
        if not isinstance(found, dict):
            raise ValueError("no table")
        everything: dict[str, dict[str, Any]] = {}
        for key, value in found.items():
            prefix, _, name = key.rpartition(".")
            everything.setdefault(prefix, {})[name] = value
        for prefix, setting in everything.items():
            if (reason := refusal(setting)) is not None:
                raise LoraFileError(f"its {prefix or 'LoRA'}: {reason}")
        chosen = {
            prefix: {name: setting[name] for name in _FIELDS if name in setting}
            for prefix, setting in everything.items()
        }
        settings = {prefix: setting for prefix, setting in chosen.items() if setting}
        if len(settings) > _MOST_COMPONENTS:
            raise ValueError(f"{len(settings):,} components are more than {_MOST_COMPONENTS}")
        for setting in settings.values():
            _check(setting)
    except (ValueError, TypeError, AttributeError, RecursionError, re.error) as error:
        raise ValueError(f"its metadata {CONFIGURED} cannot be read ({error})") from None
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
