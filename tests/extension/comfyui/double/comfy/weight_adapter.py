"""Patches that are objects."""

from __future__ import annotations

from typing import Any


class WeightAdapterBase:
    name: str
    loaded_keys: set[str]
    weights: Any

    def calculate_shape(self, key: str) -> Any:
        return None

    def calculate_weight(self, weight: Any, key: str, strength: float, *rest: Any) -> Any:
        raise NotImplementedError
