"""What a file says of its own training, in its metadata: `ss_*` as kohya's trainer writes it, and `modelspec.*`.

The WebUI's editor, our own `inspect`, and other tools read these. All values are texts, as the format asks for.
"""

from __future__ import annotations

import datetime
import json
from collections import Counter
from pathlib import Path

from lora_runtime.families import FAMILIES
from lora_runtime.train.batches import batches_per_epoch, epochs_of, places_of, steps_of
from lora_runtime.train.config import Config
from lora_runtime.train.folders import Dataset, Picture

__all__ = ["metadata_of", "trigger_phrase"]

# Family (`families`) → ss_base_model_version, modelspec.architecture, modelspec.implementation, as kohya writes them.
_FAMILIES = {
    "SD1": ("sd_v1", "stable-diffusion-v1", "diffusers"),
    "SD2": ("sd_v2", "stable-diffusion-v2-512", "diffusers"),
    "SDXL": ("sdxl_base_v1-0", "stable-diffusion-xl-v1-base", "https://github.com/Stability-AI/generative-models"),
    "SD3": ("sd3", "stable-diffusion-3", "diffusers"),
    "Flux": ("flux1", "flux-1", "https://github.com/black-forest-labs/flux"),
}
_PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}


def metadata_of(
    config: Config,
    dataset: Dataset,
    *,
    family: str,
    model_name: str,
    model_hash: str = "",
    prediction: str = "epsilon",
    steps: int,
    epoch: int,
    started: float,
    finished: float | None = None,
) -> dict[str, str]:
    """Return the metadata of a file after `steps` steps, in the epoch that counts `epoch` from 1.

    `family` is the name of a record in `families`, or "unknown"; `model_name` the name of the model's file or folder,
    and `model_hash` that file's SHA-256 in hex, "" for a folder. `prediction` is the scheduler's `prediction_type`;
    times are Unix time stamps, `finished` None while the run goes on.
    """
    v = prediction == "v_prediction"
    base, architecture, implementation = _FAMILIES.get(family) or _by_title(family)
    if family == "SD2" and v:
        base, architecture = "sd_v2_v", "stable-diffusion-v2-768-v"
    shown = [picture for picture in dataset.pictures if not picture.regularisation]
    beside = [picture for picture in dataset.pictures if picture.regularisation]
    width, height = config.resolution
    said: dict[str, object] = {
        "ss_output_name": config.output_name,
        "ss_sd_model_name": model_name,
        "ss_base_model_version": base,
        "ss_training_started_at": started,
        "ss_training_finished_at": finished,
        "ss_steps": steps,
        "ss_epoch": epoch,
        "ss_max_train_steps": steps_of(dataset, config),
        "ss_num_epochs": epochs_of(dataset, config),
        "ss_num_batches_per_epoch": batches_per_epoch(dataset, config),
        "ss_batch_size_per_device": config.train_batch_size,
        "ss_total_batch_size": config.train_batch_size,
        "ss_gradient_accumulation_steps": config.gradient_accumulation_steps,
        "ss_gradient_checkpointing": config.gradient_checkpointing,
        "ss_num_train_images": sum(picture.repeats for picture in shown),
        "ss_num_reg_images": sum(picture.repeats for picture in beside),
        "ss_learning_rate": config.learning_rate,
        "ss_unet_lr": (config.unet_lr or config.learning_rate) if config.train_unet else 0.0,
        "ss_text_encoder_lr": (config.text_encoder_lr or config.learning_rate) if config.train_text_encoder else 0.0,
        "ss_lr_scheduler": config.lr_scheduler,
        "ss_lr_warmup_steps": config.lr_warmup_steps,
        "ss_optimizer": _optimizer(config),
        "ss_max_grad_norm": config.max_grad_norm,
        "ss_network_module": "networks.lora" if config.network_module == "lora" else "lycoris.kohya",
        "ss_network_dim": config.network_dim,
        "ss_network_alpha": config.network_alpha,
        "ss_network_args": json.dumps(_network_args(config)),
        "ss_mixed_precision": config.mixed_precision,
        "ss_min_snr_gamma": config.min_snr_gamma or None,
        "ss_noise_offset": config.noise_offset or None,
        "ss_prior_loss_weight": config.prior_loss_weight,
        "ss_caption_dropout_rate": config.caption_dropout_rate,
        "ss_shuffle_caption": config.shuffle_caption,
        "ss_keep_tokens": config.keep_tokens,
        "ss_flip_aug": config.flip_aug,
        "ss_cache_latents": True,
        "ss_seed": config.seed,
        "ss_resolution": config.resolution,
        "ss_enable_bucket": config.enable_bucket,
        "ss_bucket_no_upscale": config.bucket_no_upscale,
        "ss_min_bucket_reso": config.min_bucket_reso,
        "ss_max_bucket_reso": config.max_bucket_reso,
        "ss_dataset_dirs": json.dumps(_folders(shown)),
        "ss_reg_dataset_dirs": json.dumps(_folders(beside)),
        "ss_tag_frequency": json.dumps(_tags(shown)),
        "ss_bucket_info": json.dumps(_buckets(dataset, config)),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": implementation,
        "modelspec.title": config.output_name,
        "modelspec.resolution": f"{width}x{height}",
        "modelspec.date": _date(started if finished is None else finished),
    }
    if family in ("SD1", "SD2", "SDXL"):  # what readers take from it is which UNet it is
        said["ss_v2"] = family == "SD2"
    if model_hash:
        said["ss_new_sd_model_hash"] = model_hash
    if prediction in _PREDICTIONS:
        said["modelspec.prediction_type"] = _PREDICTIONS[prediction]
    if phrase := trigger_phrase(config, dataset):
        said["modelspec.trigger_phrase"] = phrase
    return {name: str(value) for name, value in said.items()}


def trigger_phrase(config: Config, dataset: Dataset) -> str:
    """Return the words by which a prompt calls what was trained: the new word, then those of the pictures' folders."""
    words = [picture.words for picture in dataset.pictures if not picture.regularisation]
    return ", ".join(dict.fromkeys(filter(None, [config.token_string, *words])))


def _by_title(family: str) -> tuple[str, str, str]:
    """Return what kohya has no name for: the name that this library knows the family's files by."""
    title = next((known.titles[0] for known in FAMILIES if known.name == family and known.titles), family.lower())
    return title, title, "diffusers"


def _optimizer(config: Config) -> str:
    """Return the optimiser's name, and its arguments in brackets."""
    given = ",".join(f"{name}={value}" for name, value in config.optimizer_args)
    return f"{config.optimizer_type}({given})" if given else config.optimizer_type


def _network_args(config: Config) -> dict[str, str]:
    """Return what else there is to say of the layers, as LyCORIS and kohya name it."""
    said: dict[str, object] = {}
    if config.conv_dim:
        said |= {"conv_dim": config.conv_dim, "conv_alpha": config.conv_alpha or config.conv_dim}
    if config.network_module != "lora":
        said["algo"] = config.network_module
    if config.network_module == "lokr":
        said["factor"] = config.factor
    if config.use_dora:
        said["dora_wd"] = True
    if config.use_rslora:
        said["rs_lora"] = True
    return {name: str(value) for name, value in said.items()}


def _by_folder(pictures: list[Picture]) -> dict[str, list[Picture]]:
    """Return pictures by the name of their folder; of two folders of one name the second is "name (2)"."""
    names: dict[Path, str] = {}
    found: dict[str, list[Picture]] = {}
    for picture in pictures:
        folder = picture.path.parent
        if folder not in names:
            same = sum(name == picture.folder or name.startswith(f"{picture.folder} (") for name in found)
            names[folder] = f"{picture.folder} ({same + 1})" if same else picture.folder
        found.setdefault(names[folder], []).append(picture)
    return found


def _folders(pictures: list[Picture]) -> dict[str, dict[str, int]]:
    """Return each folder's repeats and number of pictures.

    The repeats are those of its first picture: a regularisation folder's may differ by one.
    """
    return {
        name: {"n_repeats": found[0].repeats, "img_count": len(found)} for name, found in _by_folder(pictures).items()
    }


def _tags(pictures: list[Picture]) -> dict[str, dict[str, int]]:
    """Return how many captions of each folder have each tag, in lower case.

    Not of the regularisation folders: their words are what the file was kept from learning.
    """
    return {
        name: dict(
            Counter(tag for p in found for tag in (part.strip().lower() for part in p.caption.split(",")) if tag)
        )
        for name, found in _by_folder(pictures).items()
    }


def _buckets(dataset: Dataset, config: Config) -> dict[str, object]:
    """Return each bucket's (width, height) and uses an epoch, and how far off the pictures' ratios are on average."""
    places = places_of(dataset, config)
    counts: Counter[tuple[int, int]] = Counter()
    errors = []
    for picture in dataset.pictures:
        width, height = places[picture.size].bucket
        counts[width, height] += picture.repeats
        errors.append(abs(width / height - picture.size[0] / picture.size[1]))
    buckets = {str(n): {"resolution": list(size), "count": counts[size]} for n, size in enumerate(sorted(counts))}
    return {"buckets": buckets, "mean_img_ar_error": sum(errors) / len(errors)}


def _date(when: float) -> str:
    return datetime.datetime.fromtimestamp(when, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S")
