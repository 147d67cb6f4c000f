"""What the rest of the library sees of a host's model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import nn

__all__ = ["Host", "ModelView", "compiled", "plain"]


def _nothing() -> None:
    return None


def _never() -> bool:
    return False


@dataclass(frozen=True, eq=False)
class ModelView:
    """The parts of a model that adapters can change, by component name."""

    components: Mapping[str, nn.Module]
    description: str  # "StableDiffusionPipeline (SD1: unet, text_encoder)"
    kind: str  # "pipeline", "model" or "checkpoint": how messages call it
    family: str = "unknown"  # SD1, SD2, SDXL, …, as far as the denoiser tells
    # Where a module keeps a parameter in more digits than the parameter itself has: "weight" → name of the attribute.
    precise: Mapping[str, str] = field(default_factory=dict)
    # The pipeline's scheduler as it is now; None where the host has none or tells the steps otherwise.
    scheduler: Callable[[], Any] = _nothing
    # Whether torch.compile made code of a part of it, which knows nothing of hooks that are added later.
    compiled: Callable[[], bool] = _never
    # Whether the pipeline paints with classifier-free guidance now; None where it does not say.
    guided: Callable[[], bool | None] = _nothing


class Host(Protocol):
    """A kind of model and how to look at it."""

    def __call__(self, model: Any) -> ModelView | None:
        """Return the view, or None when the model is of another kind."""
        ...


def plain(module: nn.Module) -> nn.Module:
    """Return the module inside the wrappers of torch.compile and PEFT."""
    inner = getattr(module, "_orig_mod", None)
    unwrap = getattr(module, "get_base_model", None)
    if inner is None and callable(unwrap):
        inner = unwrap()
    return plain(inner) if isinstance(inner, nn.Module) and inner is not module else module


def compiled(*modules: nn.Module) -> bool:
    """Return whether torch.compile, or the method of that name, made code of a module or of one inside it."""
    return any(
        "_orig_mod" in inner._modules or getattr(inner, "_compiled_call_impl", None)
        for module in modules
        for inner in module.modules()
    )
