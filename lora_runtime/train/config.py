"""The numbers of a training run, by the names that kohya's trainer has for them.

Names and meanings are those of sd-scripts, so that its `train.toml` files can be read (`kohya.py` translates what is
spelled otherwise there); defaults are the usual ones. What has another meaning here than there is not called the same.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from lora_runtime.errors import TrainingError
from lora_runtime.train.kohya import translate

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["Config", "Subset", "read_config"]


@dataclass(frozen=True)
class Subset:
    """One folder of pictures, with what its name would say: `[[datasets.subsets]]` in kohya's dataset_config."""

    image_dir: Path
    num_repeats: int = 1
    class_tokens: str = ""
    is_reg: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value = _as_kind(field.name, str(field.type), getattr(self, field.name))
            object.__setattr__(self, field.name, value)


@dataclass(frozen=True)
class Config:
    """All that a run depends on, beside the pictures. Sizes are in pixels, (width, height) where there are two.

    A value that cannot be is a TrainingError, which names the field, the value and what is allowed.
    """

    # Where things are.
    pretrained_model_name_or_path: str = ""  # a folder of diffusers', or a single file
    model_config: str = ""  # of a single file: a folder of diffusers' or a repository with its configuration
    train_data_dir: Path = Path("training")
    reg_data_dir: Path | None = None  # pictures of the class, which the LoRA shall leave as they are
    subsets: tuple[Subset, ...] = ()  # single folders, instead of train_data_dir and reg_data_dir
    output_dir: Path = Path("outputs")
    output_name: str = "lora"

    # What is trained.
    network_module: str = "lora"  # lora, loha, lokr
    network_dim: int = 16
    network_alpha: float = 8.0
    conv_dim: int = 0  # 0: convolutions larger than 1 × 1 are left as they are
    conv_alpha: float = 0.0  # 0: as conv_dim
    use_rslora: bool = False  # Δ = alpha / √rank · U·D
    use_dora: bool = False
    factor: int = -1  # LoKr's; -1: as near to square as can be
    train_unet: bool = True  # the denoiser, whatever it is
    train_text_encoder: bool = False
    token_string: str = ""  # a new word, learnt beside the LoRA (Textual Inversion); "": none
    init_word: str = ""  # what the new word means at first
    num_vectors_per_token: int = 1
    quantize: str = "no"  # the weights below the LoRA: no, nf4, int8 (QLoRA)
    prior_loss_weight: float = 1.0  # of a picture of reg_data_dir, beside 1 of the others

    # How the pictures are shown.
    resolution: tuple[int, int] = (512, 512)
    enable_bucket: bool = True
    min_bucket_reso: int = 256  # what is above the resolution means the resolution
    max_bucket_reso: int = 1024  # what is below the resolution means the resolution
    bucket_reso_steps: int = 64
    bucket_no_upscale: bool = False
    flip_aug: bool = False
    shuffle_caption: bool = False
    keep_tokens: int = 0
    caption_dropout_rate: float = 0.0
    caption_extension: tuple[str, ...] = (".txt", ".caption")
    cache_latents_to_disk: bool = False  # in memory otherwise

    # How long, and how fast.
    train_batch_size: int = 1
    gradient_accumulation_steps: int = 1
    max_train_steps: int = 1600
    max_train_epochs: int = 0  # 0: max_train_steps says how long
    learning_rate: float = 1e-4
    unet_lr: float | None = None  # None: learning_rate
    text_encoder_lr: float | None = None
    embedding_lr: float | None = None
    optimizer_type: str = "AdamW"  # of torch.optim, or by its dotted name
    optimizer_args: tuple[tuple[str, object], ...] = ()
    lr_scheduler: str = "cosine"  # constant, cosine, linear, …: diffusers.optimization's
    lr_warmup_steps: int = 0
    max_grad_norm: float = 1.0  # 0: gradients are not cut
    min_snr_gamma: float = 0.0  # 0: all steps of the noise count alike
    noise_offset: float = 0.0
    ema_decay: float = 0.0  # 0: the last weights are written; else their running mean
    gradient_checkpointing: bool = False
    mixed_precision: str = "no"  # no, fp16, bf16
    save_precision: str = "float16"
    seed: int = 42

    # What is seen of it on the way.
    save_every_n_steps: int = 0
    save_every_n_epochs: int = 0
    sample_every_n_steps: int = 0
    sample_prompts: tuple[str, ...] = ()  # with kohya's --w, --h, --d, --s, --l and --n, and with tags

    def __post_init__(self) -> None:
        for field in fields(self):
            value = _as_kind(field.name, str(field.type), getattr(self, field.name))
            object.__setattr__(self, field.name, value)
        for names, (holds, allowed) in _RULES.items():
            for name in names.split():
                value = getattr(self, name)
                if value is not None and not holds(value):
                    raise TrainingError(f"{name} = {value!r} cannot be: {allowed}")
        if not (self.train_unet or self.train_text_encoder or self.token_string):
            raise TrainingError(
                "nothing would be trained: train_unet and train_text_encoder are off and token_string is empty; "
                "set one of them"
            )
        if self.enable_bucket and self.bucket_reso_steps > min(self.resolution):
            raise TrainingError(
                f"bucket_reso_steps = {self.bucket_reso_steps} cannot be: it is more than a side of resolution "
                f"{self.resolution}; a smaller multiple of 8 is allowed, or enable_bucket = false"
            )

    @property
    def out(self) -> Path:
        """The file that is written."""
        return self.output_dir / f"{self.output_name}.safetensors"


def read_config(path: str | os.PathLike[str], **over: Any) -> tuple[Config, list[str]]:
    """Return the numbers in a TOML file, and a line for each name in it that is not known or means something else.

    The file is as kohya's `--config_file` (sections are only headings) or `--dataset_config`. `over` are fields of
    `Config` that count instead of the file's. TrainingError where the file cannot be read or a value cannot be.
    """
    path = Path(path)
    try:
        table = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise TrainingError(f"{path}: the configuration cannot be read ({error.strerror or error})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TrainingError(f"{path}: no TOML file ({error}); write lines such as `network_dim = 16`") from error
    known = {field.name: str(field.type) for field in fields(Config)}
    if strange := sorted(over.keys() - known.keys()):
        raise TrainingError(f"{', '.join(strange)}: Config has no such field")
    try:
        values, notes = translate(table, known)
        if "train_data_dir" in over and values.pop("subsets", ()):
            notes.append(f"the folders of [[datasets]] are not read: {over['train_data_dir']} is asked for instead")
        if "subsets" in values:
            values["subsets"] = tuple(Subset(**subset) for subset in values["subsets"])
        return Config(**{**values, **over}), notes
    except TrainingError as error:
        raise TrainingError(f"{path}: {error}") from error


# --- what a value may be -----------------------------------------------------------------------------------------


def _as_kind(name: str, kind: str, value: Any) -> Any:
    """Return a value as the type that its field has; TrainingError where it is of another one."""
    if kind.endswith(" | None"):
        if value is None:
            return None
        kind = kind.removesuffix(" | None")
    if kind == "Path" and isinstance(value, (str, os.PathLike)) and os.fspath(value):
        return Path(value)
    if kind == "float" and isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    if kind.startswith("tuple") and isinstance(value, (list, tuple)):
        value = tuple(value)
    test, allowed = _KINDS[kind]
    if not test(value):
        raise TrainingError(f"{name} = {value!r} cannot be: {allowed}")
    return value


def _whole(value: object) -> bool:
    return type(value) is int


def _texts(value: object) -> bool:
    return isinstance(value, tuple) and all(isinstance(item, str) for item in value)


def _named(value: object) -> bool:
    return isinstance(value, tuple) and all(
        isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str) for item in value
    )


_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "int": (_whole, "a whole number is needed"),
    "float": (lambda value: False, "a finite number is needed"),
    "bool": (lambda value: isinstance(value, bool), "true or false is needed"),
    "str": (lambda value: isinstance(value, str), "a text is needed"),
    "Path": (lambda value: False, "a path is needed"),
    "tuple[int, int]": (
        lambda value: isinstance(value, tuple) and len(value) == 2 and all(map(_whole, value)),
        "two whole numbers are needed, the width and the height",
    ),
    "tuple[str, ...]": (_texts, "a list of texts is needed"),
    "tuple[Subset, ...]": (
        lambda value: isinstance(value, tuple) and all(isinstance(item, Subset) for item in value),
        "a tuple of Subset is needed",
    ),
    "tuple[tuple[str, object], ...]": (_named, "a list of pairs is needed, a name and its value"),
}


def _one_of(*names: str) -> tuple[Callable[[Any], bool], str]:
    return lambda value: value in names, f"one of {', '.join(names)} is allowed"


def _at_least(least: int) -> tuple[Callable[[Any], bool], str]:
    return lambda value: value >= least, f"{least} or more is allowed"


_RATE = (lambda value: 0 <= value < 1, "from 0 to less than 1 is allowed")
# Field names, as many as share the rule: when it holds, and what is allowed.
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "network_module": _one_of("lora", "loha", "lokr"),
    "quantize": _one_of("no", "nf4", "int8"),
    "mixed_precision": _one_of("no", "fp16", "bf16"),
    "save_precision": _one_of("float32", "float16", "bfloat16"),
    "network_dim num_vectors_per_token train_batch_size gradient_accumulation_steps max_train_steps": _at_least(1),
    "conv_dim conv_alpha keep_tokens max_train_epochs lr_warmup_steps max_grad_norm min_snr_gamma": _at_least(0),
    "save_every_n_steps save_every_n_epochs sample_every_n_steps prior_loss_weight noise_offset seed": _at_least(0),
    "learning_rate unet_lr text_encoder_lr embedding_lr network_alpha": (
        lambda value: value > 0,
        "more than 0 is allowed",
    ),
    "factor": (lambda value: value == -1 or value >= 1, "-1 or a whole number from 1 is allowed"),
    "caption_dropout_rate": (lambda value: 0 <= value <= 1, "from 0 to 1 is allowed"),
    "ema_decay": _RATE,
    "resolution": (
        lambda value: all(side >= 8 and side % 8 == 0 for side in value),
        "two multiples of 8 are allowed",
    ),
    "bucket_reso_steps": (lambda value: value >= 8 and value % 8 == 0, "a multiple of 8 is allowed"),
    "min_bucket_reso max_bucket_reso": _at_least(1),
    "output_name optimizer_type lr_scheduler": (lambda value: value.strip() != "", "it is empty"),
    "caption_extension": (
        lambda value: all(len(item) > 1 and item.startswith(".") for item in value),
        "endings are allowed that begin with a dot",
    ),
}
