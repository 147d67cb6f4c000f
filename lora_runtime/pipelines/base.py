"""What the rest of the library sees of a host's model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import nn

__all__ = ["Host", "ModelView", "compiled", "plain"]


def _nothing(_: str) -> None:
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
    # Whether torch.compile made code of a part of it, which knows nothing of hooks that are added later.
    compiled: Callable[[], bool] = _never
    # An attribute of the pipeline as it is now, such as its scheduler; None where it has none of that name.
    ask: Callable[[str], Any] = _nothing
    # The names of the pipeline's class and of those that it is made from.
    titles: tuple[str, ...] = ()
    # Components as the pipeline calls them, where they are wrapped, in torch.compile's module for instance.
    wrapped: Mapping[str, nn.Module] = field(default_factory=dict)

    def outer(self, component: str) -> nn.Module:
        """Return a component as its pipeline calls it."""
        return self.wrapped.get(component, self.components[component])


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
    """Return whether torch.compile, or the method of that name, made code of one of the modules inside, or of its `forward`."""
    return any(
        "_orig_mod" in inner._modules
        or getattr(inner, "_compiled_call_impl", None)
        or hasattr(getattr(inner, "forward", None), "_torchdynamo_orig_callable")
        for module in modules
        for inner in module.modules()
    )
