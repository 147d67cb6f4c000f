"""A pipeline to be trained, from a folder as diffusers saves it or from a single file, without a network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lora_runtime.errors import TrainingError
from lora_runtime.header import read_header
from lora_runtime.pipelines.saved import dtype_argument
from lora_runtime.train.config import Config
from lora_runtime.train.run import PRECISIONS

__all__ = ["load_file", "load_pipeline"]

# By a part of a key that only files of that kind have: the pipeline, and the repository whose configuration it is.
_MARKS = {
    "conditioner.embedders.1.": ("StableDiffusionXLPipeline", "stabilityai/stable-diffusion-xl-base-1.0"),
    "joint_blocks.": ("StableDiffusion3Pipeline", "stabilityai/stable-diffusion-3-medium-diffusers"),
    "double_blocks.": ("FluxPipeline", "black-forest-labs/FLUX.1-dev"),
    "cond_stage_model.model.transformer.": ("StableDiffusionPipeline", "stabilityai/stable-diffusion-2-1"),
    "cond_stage_model.transformer.": ("StableDiffusionPipeline", "stable-diffusion-v1-5/stable-diffusion-v1-5"),
}


def load_pipeline(config: Config) -> Any:
    """Return the pipeline of `config.pretrained_model_name_or_path`, in the dtype of `config.mixed_precision`.

    TrainingError where there is none. A single file has no configuration: diffusers takes that of the model it is of
    from its cache, and the error says which one is lacking there.
    """
    path = Path(config.pretrained_model_name_or_path)
    if not config.pretrained_model_name_or_path:
        raise TrainingError("no model is given: --model, or pretrained_model_name_or_path, with a folder or a file")
    if not path.exists():
        raise TrainingError(f"the model {str(path)!r} does not exist; give a folder or a .safetensors file")
    dtype = PRECISIONS[config.mixed_precision]
    return _load_folder(path, dtype) if path.is_dir() else load_file(path, dtype)


def load_file(path: Path, dtype: Any) -> Any:
    """Return the pipeline of a single file, in a dtype of torch's; TrainingError where that cannot be."""
    import diffusers

    name, repository = _kind_of(path)
    lacking = f"; the configuration of {repository} must be in the cache of huggingface_hub, or give a folder"
    with _loading(path, lacking):
        pipe = getattr(diffusers, name).from_single_file(
            str(path), config=repository, local_files_only=True, **dtype_argument(diffusers.__version__, dtype)
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _load_folder(path: Path, dtype: Any) -> Any:
    import diffusers

    with _loading(path):
        pipe = diffusers.DiffusionPipeline.from_pretrained(
            str(path), local_files_only=True, **dtype_argument(diffusers.__version__, dtype)
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@contextmanager
def _loading(path: Path, advice: str = "") -> Iterator[None]:
    """Turn what diffusers raises for a model that cannot be loaded into a TrainingError."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError, TypeError, ImportError) as error:
        raise TrainingError(f"{path} cannot be loaded: {' '.join(str(error).split())}{advice}") from error


def _kind_of(path: Path) -> tuple[str, str]:
    """Return the class of a single file's pipeline, and the repository of its configuration."""
    keys = read_header(path).tensors
    for mark, found in _MARKS.items():
        if any(mark in key for key in keys):
            return found
    raise TrainingError(f"{path}: is no checkpoint of SD1, SD2, SDXL, SD3 or Flux, by the names of its tensors")
