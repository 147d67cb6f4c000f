"""A pipeline of transformers, such as text generation: anything with `.model` and `.tokenizer`. None is imported."""

from __future__ import annotations

from typing import Any

from torch import nn

from lora_runtime.pipelines.base import ModelView
from lora_runtime.pipelines.module import view_module

__all__ = ["view_generation"]


def view_generation(model: Any) -> ModelView | None:
    """Return the model in the pipeline as a single component."""
    inner = getattr(model, "model", None)
    if isinstance(model, nn.Module) or not isinstance(inner, nn.Module) or not hasattr(model, "tokenizer"):
        return None
    return view_module(inner)
