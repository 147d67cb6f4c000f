"""The route of one parameter."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from lora_runtime.routes.facts import Facts
from lora_runtime.routes.storage import dense, how_stored, scale_of, stands_for_weight

__all__ = ["Route", "route_of"]


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """How adapters act on one parameter, and why they are not merged into it.

    `base` gives W₀ of a parameter whose own data is not W₀: a dense floating-point tensor in the shape of the layer.
    `remedy` is what to do where an adapter cannot act beside the module either.
    """

    kind: Literal["merged", "beside", "refused"]
    reason: str = ""
    base: Callable[[], Tensor] | None = None
    remedy: str = ""


MERGED = Route("merged")
_WHOLE = "use enable_model_cpu_offload instead"


def route_of(module: nn.Module, name: str, facts: Facts, precise: Tensor | None = None) -> Route:
    """Return the route of the parameter `name` of a live module.

    `precise`: the values of a parameter of 8 bits as the host keeps them beside it, in more digits. What is stored
    there is merged from these.
    """
    parameter = module._parameters.get(name)
    if parameter is None:
        return _computed(module, name)
    kept = facts.kept(module, name)
    if kept is not None:
        base = _base_of(module, name, kept)
        return Route("beside", "kept elsewhere between two calls by an offloader", base, _WHOLE)
    if parameter.is_meta:
        return Route("beside", "offloaded piece by piece (meta device)", None, _WHOLE)
    stored = how_stored(parameter)
    if stored == "DTensor":
        return Route("refused", "for a weight that is sharded over devices (DTensor): apply before it is sharded")
    if stored is not None:
        if precise is not None and precise.shape == parameter.shape:
            return MERGED
        return Route("beside", f"stored as {stored}", _base_of(module, name), "load it in 16 bits instead")
    if scale_of(module, name) is not None and not _is_fp8_layer_of_full_precision(module):
        return Route("beside", "scaled by a number beside it", _base_of(module, name))
    others = facts.owners(parameter)
    if len(others) > 1 and _roles_differ(others):
        kinds = ", ".join(type(other).__name__ for other in others)
        return Route("beside", f"shared by {len(others)} layers ({kinds})")
    return MERGED


def _computed(module: nn.Module, name: str) -> Route:
    """Return the route of a weight that is no parameter: computed from others at each call, or codes."""
    if name == "weight" and stands_for_weight(module):
        return Route("beside", f"stored as the codes of a {type(module).__name__}", _base_of(module, name))
    if isinstance(getattr(module, name, None), Tensor):
        reference = weakref.ref(module)

        def values() -> Tensor:
            owner = reference()
            if owner is None:
                raise ReferenceError("the layer is gone")
            found: Tensor = getattr(owner, name)
            return found.detach()

        return Route("beside", "computed at each call (a parametrization)", values)
    return Route("refused", "for a module that has no weight of its own")


def _is_fp8_layer_of_full_precision(module: nn.Module) -> bool:
    """Return whether this is the layer of transformers that leaves its scale aside for a weight of 16 bits or more."""
    return type(module).__name__ == "FP8Linear"


def _roles_differ(owners: list[nn.Module]) -> bool:
    """Return whether a change of a shared weight would reach layers that it is not meant for.

    Tables of one and the same vocabulary (T5's `shared` and `embed_tokens`) mean the one table; of all other layers
    each has its own adapters, as PEFT trains them.
    """
    return not all(isinstance(owner, nn.Embedding) for owner in owners)


def _base_of(module: nn.Module, name: str, kept: Callable[[], Tensor] | None = None) -> Callable[[], Tensor]:
    """Return what gives W₀, without keeping the module."""
    reference = weakref.ref(module)

    def base() -> Tensor:
        owner = reference()
        if owner is None:
            raise ReferenceError("the layer is gone")
        return dense(owner, name, None if kept is None else kept())

    return base
