"""Adapters: one file an algorithm. A new one is a file with an `Algorithm` and a line in registry.ALGORITHMS."""

from __future__ import annotations

from lora_runtime.adapters.base import Adapter, Algorithm, Dense, Group, no_autocast
from lora_runtime.adapters.forms import Factors, Form, Map
from lora_runtime.adapters.lora import LowRank
from lora_runtime.adapters.pending import Pending
from lora_runtime.adapters.registry import ALGORITHMS, KeyParts, companion, replaced_parts, split_key
from lora_runtime.adapters.rows import Rows

__all__ = [
    "ALGORITHMS",
    "Adapter",
    "Algorithm",
    "Dense",
    "Factors",
    "Form",
    "Group",
    "KeyParts",
    "LowRank",
    "Map",
    "Pending",
    "Rows",
    "companion",
    "no_autocast",
    "replaced_parts",
    "split_key",
]
