"""Whether a model still has the modules, parameters and hooks that it had, stored as they were: one walk tells."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

from torch import nn

from lora_runtime.routes.facts import hooks_of

__all__ = ["Look", "Seen", "modules_of"]


class Look:
    """What the components of a model have now, in lists that are compared in one go; it is used at once, and not kept.

    Of a parameter on the meta device only that it is there counts: an offloader puts a new one there after each call.
    """

    def __init__(self, components: Iterable[nn.Module], precise: Mapping[str, str]) -> None:
        self.parts = [modules_of(component) for component in components]
        self.modules = [*chain.from_iterable(self.parts)]
        own = [module.__dict__ for module in self.modules]
        tables = [attributes["_parameters"] for attributes in own]
        parameters: list[Any] = [*chain.from_iterable(table.values() for table in tables)]
        metas = [parameter is None or parameter.is_meta for parameter in parameters]
        self.ids = [*map(id, parameters)]
        dtypes = [None if parameter is None else parameter.dtype for parameter in parameters]
        if any(metas):
            self.ids = [0 if meta else number for number, meta in zip(self.ids, metas, strict=True)]
            dtypes = [None if meta else dtype for dtype, meta in zip(dtypes, metas, strict=True)]
        self.details: list[list[object]] = [
            [*chain.from_iterable(tables)],
            [*map(len, tables)],
            dtypes,
            [len(attributes["_buffers"]) for attributes in own],
        ]
        if precise:
            kept: list[object] = [
                id(attributes.get(precise[name])) if name in precise else None
                for attributes, table in zip(own, tables, strict=True)
                for name in table
            ]
            self.details.append(kept)
        # The older attentions of diffusers keep their fused layers when they are taken apart.
        fused = [attributes for attributes in own if attributes.get("fused_projections")]
        self.details.append([type(attributes.get("processor")) for attributes in fused])
        hooked = (
            module
            for module, attributes in zip(self.modules, own, strict=True)
            if "_diffusers_hook" in attributes or "_hf_hook" in attributes
        )
        self.hooks = [hook for module in hooked for hook in hooks_of(module)]


class Seen:
    """What a look has seen, kept without keeping the model.

    Of a parameter it has the id: torch swaps no tensors that have a weak reference. Who keeps places keeps the
    parameters too, so no id is another's meanwhile.
    """

    def __init__(self, look: Look) -> None:
        self._modules = [*map(weakref.ref, look.modules)]
        self._hooks = [*map(weakref.ref, look.hooks)]
        self._ids, self._details = look.ids, look.details

    def __eq__(self, look: object) -> bool:
        """Return whether a later look has seen the same."""
        return (
            isinstance(look, Look)
            and self._ids == look.ids
            and self._details == look.details
            and [reference() for reference in self._modules] == look.modules
            and [reference() for reference in self._hooks] == look.hooks
        )

    __hash__ = None  # type: ignore[assignment]


def modules_of(root: nn.Module) -> list[nn.Module]:
    """Return a module and all inside it, each once: as `modules()` does, in a quarter of the time."""
    seen, found = {root}, [root]
    for module in found:  # it grows on the way
        for child in module._modules.values():
            if child is not None and child not in seen:
                seen.add(child)
                found.append(child)
    return found
