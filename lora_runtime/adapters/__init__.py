"""Adapters: one file an algorithm. A new one is a file with an `Algorithm` and a line in registry.ALGORITHMS."""

from __future__ import annotations

from lora_runtime.adapters.base import Adapter, Algorithm, Dense, Factors, Group, no_autocast
from lora_runtime.adapters.lora import LowRank
from lora_runtime.adapters.pending import Pending
from lora_runtime.adapters.registry import ALGORITHMS, KeyParts, companion, split_key
from lora_runtime.adapters.rows import Rows

__all__ = [
    "ALGORITHMS",
    "Adapter",
    "Algorithm",
    "Dense",
    "Factors",
    "Group",
    "KeyParts",
    "LowRank",
    "Pending",
    "Rows",
    "companion",
    "no_autocast",
    "split_key",
]
