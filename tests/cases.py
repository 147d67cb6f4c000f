"""Which cases of a parametrised test a quick run can do without."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest

__all__ = ["repeated"]


def repeated(items: Iterable[pytest.Item]) -> Iterator[pytest.Item]:
    """Yield the cases of each test all of whose values are in earlier ones; what is slow itself does not count."""
    known: dict[str, set[tuple[str, int]]] = {}
    for item in items:
        given = getattr(item, "callspec", None)
        if given is None or item.get_closest_marker("slow"):
            continue
        values = {(name, id(value)) for name, value in given.params.items()}  # a value of several cases is one object
        met = known.setdefault(item.nodeid.partition("[")[0], set())
        if values <= met:
            yield item
        met |= values
