"""The pipeline that a run's numbers name."""

from __future__ import annotations

from typing import Any

from lora_runtime.errors import ModelError, TrainingError
from lora_runtime.pipelines.saved import load_saved
from lora_runtime.train.config import Config
from lora_runtime.train.run import PRECISIONS

__all__ = ["load_pipeline"]


def load_pipeline(config: Config) -> Any:
    """Return the pipeline of `config.pretrained_model_name_or_path`, in the dtype of `config.mixed_precision`.

    `config.model_config` is where a single file's configuration is taken from, as in `load_saved`. TrainingError where
    there is no pipeline.
    """
    if not config.pretrained_model_name_or_path:
        raise TrainingError("no model is given: --model, or pretrained_model_name_or_path, with a folder or a file")
    try:
        return load_saved(
            config.pretrained_model_name_or_path, PRECISIONS[config.mixed_precision], config.model_config or None
        )
    except ModelError as error:
        raise TrainingError(str(error)) from error
