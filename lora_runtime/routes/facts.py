"""What bears on more than one layer of a model: who else holds a parameter, and who keeps it between two calls."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn

__all__ = ["Facts", "hooks_of", "kept_buffers", "own_forward"]

Kept = Callable[[], Tensor]


class Facts:
    """Ties and offloaders of a model, found once while its modules and their hooks are the same."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        """Look at all modules of a model; one that comes twice counts once."""
        self._owners: dict[int, list[tuple[weakref.ref[nn.Module], str]]] = {}  # by id(parameter)
        self._in_groups: dict[int, Kept] = {}  # by id(parameter)
        self._in_maps: dict[tuple[int, str], Kept] = {}  # by id(module) and the parameter's name in it
        seen: set[int] = set()
        for module in modules:
            if id(module) in seen:
                continue
            seen.add(id(module))
            for name, parameter in module._parameters.items():
                if parameter is not None and not parameter.is_meta:
                    self._owners.setdefault(id(parameter), []).append((weakref.ref(module), name))
            for hook in hooks_of(module):
                self._note(module, hook)

    def owners(self, parameter: nn.Parameter) -> list[nn.Module]:
        """Return the modules that hold a parameter."""
        found = (reference() for reference, _ in self._owners.get(id(parameter), ()))
        return [module for module in found if module is not None]

    def kept(self, module: nn.Module, name: str) -> Kept | None:
        """Return what gives a parameter as an offloader keeps it between two calls, or None where none does."""
        found = self._in_maps.get((id(module), name))
        own = module._buffers.get(name) if name in module._buffers else module._parameters.get(name)
        return self._in_groups.get(id(own)) if found is None else found

    def _note(self, module: nn.Module, hook: Any) -> None:
        group = getattr(hook, "group", None)
        if group is not None and hasattr(group, "cpu_param_dict"):
            # Without a stream and without a file the parameter's own data goes to the device and back.
            if getattr(group, "stream", None) is not None or getattr(group, "offload_to_disk_path", None):
                for tensor in _in_group(group):
                    self._in_groups[id(tensor)] = _from_group(weakref.ref(group), id(tensor))
        elif getattr(hook, "offload", False) and getattr(hook, "weights_map", None) is not None:
            for prefix, owner in module.named_modules() if getattr(hook, "place_submodules", False) else [("", module)]:
                buffers = owner._buffers if getattr(hook, "offload_buffers", False) else {}
                for name in (*owner._parameters, *(b for b in buffers if b not in owner._non_persistent_buffers_set)):
                    key = f"{prefix}.{name}" if prefix else name
                    self._in_maps[id(owner), name] = _from_map(weakref.ref(hook), key)


def hooks_of(module: nn.Module) -> Iterator[Any]:
    """Yield the hooks that diffusers and accelerate have put around a module's forward pass."""
    own = module.__dict__
    if "_diffusers_hook" in own:
        yield from own["_diffusers_hook"].hooks.values()
    if "_hf_hook" in own:
        hook = own["_hf_hook"]
        yield from getattr(hook, "hooks", (hook,))


def own_forward(module: nn.Module) -> Callable[..., Any]:
    """Return a module's forward pass without what diffusers and accelerate have put around it.

    That would give the module its own parameters back before it runs.
    """
    own = module.__dict__
    forward: Callable[..., Any] = own.get("_old_forward", module.forward)
    for innermost in getattr(own.get("_diffusers_hook"), "_fn_refs", ())[:1]:
        forward = innermost.original_forward or innermost.forward
    return forward


def kept_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Return the buffers that the module's own offloader has elsewhere by the time that a hook runs after the call."""
    if not module._buffers:
        return {}
    facts = Facts((module,))
    found = {name: facts.kept(module, name) for name in module._buffers}
    return {name: kept() for name, kept in found.items() if kept is not None}


def _in_group(group: Any) -> Iterator[Tensor]:
    """Yield the parameters and buffers of a group that diffusers loads as one."""
    for module in group.modules:
        yield from module.parameters()
        yield from module.buffers()
    yield from group.parameters
    yield from getattr(group, "buffers", ())


def _from_group(group: weakref.ref[Any], number: int) -> Kept:
    """Return what reads a tensor, given by its id, where a group of diffusers keeps it: in memory, or in a file.

    The group has the tensor. A weak reference of ours would be in torch's way: it swaps no tensor that has one.
    """

    def read() -> Tensor:
        kept = group()
        own = None if kept is None else next((found for found in _in_group(kept) if id(found) == number), None)
        if kept is None or own is None:
            raise ReferenceError("the group that keeps this weight is gone")
        if not kept.offload_to_disk_path:
            found: Tensor = kept.cpu_param_dict[own]
            return found
        with safe_open(kept.safetensors_file_path, "pt") as file:
            tensor: Tensor = file.get_tensor(kept.tensor_to_key[own])
            return tensor

    return read


def _from_map(hook: weakref.ref[Any], key: str) -> Kept:
    """Return what reads a parameter from accelerate's map of weights."""

    def read() -> Tensor:
        kept = hook()
        if kept is None:
            raise ReferenceError("the hook that keeps this weight is gone")
        tensor: Tensor = kept.weights_map[key]
        return tensor

    return read
