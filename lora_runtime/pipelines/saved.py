"""Pipelines as they are saved: a folder of diffusers', or one checkpoint file in the names of the original code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lora_runtime.errors import ModelError
from lora_runtime.header import read_header

__all__ = ["best_device", "device_and_dtype", "dtype_argument", "load_saved"]

# By a part of a key that only files of that kind have: the pipeline, and the repository whose configuration it is.
_MARKS = {
    "conditioner.embedders.1.": ("StableDiffusionXLPipeline", "stabilityai/stable-diffusion-xl-base-1.0"),
    "joint_blocks.": ("StableDiffusion3Pipeline", "stabilityai/stable-diffusion-3-medium-diffusers"),
    "double_blocks.": ("FluxPipeline", "black-forest-labs/FLUX.1-dev"),
    "cond_stage_model.model.transformer.": ("StableDiffusionPipeline", "stabilityai/stable-diffusion-2-1"),
    "cond_stage_model.transformer.": ("StableDiffusionPipeline", "stable-diffusion-v1-5/stable-diffusion-v1-5"),
}


def load_saved(path: str | os.PathLike[str], dtype: Any, config: str | os.PathLike[str] | None = None) -> Any:
    """Return the pipeline of a folder or of a checkpoint file, in a dtype of torch's, with its progress bar off.

    A file has no configuration. That is taken from `config`, a folder as diffusers saves it (its weights are not read)
    or the name of a repository; left out, from the repository of the model that the file is of by its tensors' names.
    diffusers looks for a repository in huggingface_hub's cache, and asks the hub where it is not there, unless
    HF_HUB_OFFLINE is set: some files of text, a few MB. ModelError where a pipeline cannot be had, with the reason.
    """
    import diffusers

    path, lacking = Path(path), ""
    argument = dtype_argument(diffusers.__version__, dtype)
    if not path.exists():
        raise ModelError(f"the model {str(path)!r} does not exist; give a folder or a .safetensors file")
    try:
        if path.is_dir():
            pipe = diffusers.DiffusionPipeline.from_pretrained(str(path), local_files_only=True, **argument)
        else:
            name, repository = _kind_of(path)
            source = repository if config is None else os.fspath(config)
            if config is None:
                lacking = (
                    f"; its configuration is that of {repository}: let huggingface_hub load it once, or name a folder "
                    "of such a model beside the file"
                )
            load = getattr(diffusers, name).from_single_file
            pipe = load(str(path), config=source, local_files_only=True, **argument)
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError, TypeError, ImportError) as error:
        raise ModelError(f"{path} cannot be loaded: {' '.join(str(error).split())}{lacking}") from error
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _kind_of(path: Path) -> tuple[str, str]:
    """Return the class of a single file's pipeline, and the repository of its configuration."""
    keys = read_header(path).tensors
    for mark, found in _MARKS.items():
        if any(mark in key for key in keys):
            return found
    raise ModelError(f"{path}: is no checkpoint of SD1, SD2, SDXL, SD3 or Flux, by the names of its tensors")


def best_device(torch: Any) -> str:
    """Return the name of the first device that is there, of CUDA, MPS and the CPU."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def device_and_dtype(torch: Any, device: str | None, dtype: str | None) -> tuple[str, Any]:
    """Return the device and the dtype of torch's by their names; of None the first device, and what is usual there."""
    device = device or best_device(torch)
    return device, getattr(torch, dtype or ("float32" if device == "cpu" else "float16"))


def dtype_argument(version: str, dtype: Any) -> dict[str, Any]:
    """Return the dtype under the name that this version of diffusers has for it: 0.42 warns of the old one."""
    major, minor = map(int, version.split(".")[:2])
    return {"dtype" if (major, minor) >= (0, 42) else "torch_dtype": dtype}
