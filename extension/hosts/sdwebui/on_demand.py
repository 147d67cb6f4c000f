"""Tables that the WebUI and other extensions look things up in, and whose values are made when asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, MutableMapping
from typing import Any

__all__ = ["OnDemand"]


class OnDemand(MutableMapping[str, Any]):
    """A table whose values are made when they are asked for; what is put in is kept until it is cleared."""

    def __init__(self, make: Callable[[str], Any], names: Callable[[], Iterable[str]]) -> None:
        self._make = make
        self._names = names
        self._kept: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        value = self._kept[name] if name in self._kept else self._make(name)
        if value is None:
            raise KeyError(name)
        return value

    def __setitem__(self, name: str, value: Any) -> None:
        self._kept[name] = value

    def __delitem__(self, name: str) -> None:
        self._kept.pop(name, None)

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._names()))

    def __len__(self) -> int:
        return len(list(self._names()))

    def clear(self) -> None:
        """Forget what was put in."""
        self._kept.clear()
