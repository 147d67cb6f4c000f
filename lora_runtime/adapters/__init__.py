"""Adapters: one file an algorithm. A new one is a file with an `Algorithm` and a line in registry.ALGORITHMS."""

from __future__ import annotations

from lora_runtime.adapters.base import Adapter, Algorithm, Factors, Group, no_autocast
from lora_runtime.adapters.lora import LowRank
from lora_runtime.adapters.pending import Pending
from lora_runtime.adapters.registry import ALGORITHMS, KeyParts, split_key

__all__ = [
    "ALGORITHMS",
    "Adapter",
    "Algorithm",
    "Factors",
    "Group",
    "KeyParts",
    "LowRank",
    "Pending",
    "no_autocast",
    "split_key",
]
