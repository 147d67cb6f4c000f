"""What a question may cost."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from lora_runtime.errors import LoraError

__all__ = ["Patience"]


@dataclass
class Patience:
    """What looking up names may still cost, for all names of one question together: somebody waits for the answer.

    The folders are looked through again if that was last done before `since` (`time.monotonic()`). For hashes that are
    not known files are read for so many seconds, and so many unknown names are compared with all others. `unknown` are
    the names that lead nowhere, found out once.
    """

    since: float = field(default_factory=time.monotonic)
    seconds_to_hash: float = 1.0
    suggestions: int = 10
    unknown: dict[str, LoraError] = field(default_factory=dict)
