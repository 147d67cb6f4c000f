"""What the rest of the library sees of a host's model."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import nn

from lora_runtime.errors import ModelError

__all__ = ["Host", "ModelView", "WeakView", "compiled", "compiled_later", "plain"]


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


class WeakView:
    """A view that keeps no model: the components are there as long as somebody else has them."""

    def __init__(self, view: ModelView) -> None:
        self.description = view.description
        self._rest = replace(view, components={}, wrapped={})
        self._components = {name: weakref.ref(component) for name, component in view.components.items()}
        self._wrapped = {name: weakref.ref(component) for name, component in view.wrapped.items()}

    def view(self) -> ModelView:
        """Return the view again; ModelError where a component is gone."""
        components = {name: reference() for name, reference in self._components.items()}
        found = {name: component for name, component in components.items() if component is not None}
        if len(found) < len(components):
            raise ModelError(f"{self.description} is gone: apply to a model that there is")
        wrapped = {name: outer for name, reference in self._wrapped.items() if (outer := reference()) is not None}
        return replace(self._rest, components=MappingProxyType(found), wrapped=MappingProxyType(wrapped))


class Host(Protocol):
    """A kind of model and how to look at it."""

    def __call__(self, model: Any) -> ModelView | None:
        """Return the view, or None when the model is of another kind."""
        ...


_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def plain(module: nn.Module) -> nn.Module:
    """Return the module inside the wrappers of torch.compile, PEFT and torch's data parallelism.

    ModelError for a traced or scripted one, whose code has its weights by other means.
    """
    if isinstance(module, torch.jit.ScriptModule):
        raise ModelError(
            f"cannot patch a {type(module).__name__}: it is traced or scripted; apply to the module it was made of, "
            "and trace that again"
        )
    inner = getattr(module, "_orig_mod", None)
    if isinstance(module, _PARALLEL):
        inner = module.module
    unwrap = getattr(module, "get_base_model", None)
    if inner is None and callable(unwrap):
        inner = unwrap()
    return plain(inner) if isinstance(inner, nn.Module) and inner is not module else module


def compiled(*modules: nn.Module) -> bool:
    """Return whether torch.compile, or the method of that name, made code of a module inside, or of its `forward`."""
    return any(
        "_orig_mod" in inner._modules
        or getattr(inner, "_compiled_call_impl", None)
        or hasattr(getattr(inner, "forward", None), "_torchdynamo_orig_callable")
        for module in modules
        for inner in module.modules()
    )


def compiled_later(*modules: nn.Module) -> Callable[[], bool]:
    """Return what tells whether torch.compile has made code of them by then; it keeps none of them."""
    references = [weakref.ref(module) for module in modules]
    return lambda: compiled(*(module for reference in references if (module := reference()) is not None))
