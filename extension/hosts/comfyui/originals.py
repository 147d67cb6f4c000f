"""W₀ of a weight, wherever the program has it now."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

__all__ = ["Originals"]


class Originals:
    """The originals of the models of some patchers; it keeps no model. All clones of one share its backups."""

    def __init__(self, patchers: Iterable[Any]) -> None:
        self._backups: list[tuple[weakref.ref[nn.Module], Mapping[str, Any], Mapping[str, Any]]] = [
            (weakref.ref(patcher.model), patcher.backup, patcher.hook_backup) for patcher in patchers
        ]

    def __call__(self, module: nn.Module, name: str) -> Tensor:
        """Return W₀ of a module's parameter of that name."""
        for reference, backup, of_hooks in self._backups:
            if not backup and not of_hooks:
                continue
            root = reference()
            for path, own in () if root is None else root.named_modules():
                if own is module:
                    key = f"{path}.{name}"
                    if key in backup:
                        return _plain(backup[key].weight)
                    if key in of_hooks:  # of a weight with patches it is W′, of any other W₀
                        return _plain(of_hooks[key][0])
        parameter = module._parameters[name]
        assert parameter is not None
        return parameter.data


def _plain(found: Any) -> Tensor:
    tensor: Tensor = found.data if isinstance(found, nn.Parameter) else found
    return tensor
