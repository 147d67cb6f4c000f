"""Which algorithm owns a key: the longest ending that any of them knows decides."""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import MappingProxyType

from lora_runtime.adapters import lora
from lora_runtime.adapters.base import Algorithm
from lora_runtime.adapters.pending import PENDING, Pending

__all__ = ["ALGORITHMS", "KeyParts", "split_key"]

ALGORITHMS: tuple[Algorithm, ...] = (lora.ALGORITHM,)


@dataclass(frozen=True)
class KeyParts:
    """A key of a file, taken apart."""

    stem: str  # names the module
    role: str  # names the tensor within its algorithm: "up", "down", "alpha" …
    spelling: str = ""  # tensors belong together when they are spelled alike
    owner: Algorithm | Pending | None = None  # None for what all algorithms share: alpha


def _owners() -> dict[str, tuple[str, str, Algorithm | Pending | None]]:
    owners: dict[str, tuple[str, str, Algorithm | Pending | None]] = {".alpha": ("alpha", "", None)}
    owners.update((ending, (ending, "", pending)) for ending, pending in PENDING.items())
    for algorithm in ALGORITHMS:
        for ending, spelled_role in algorithm.endings.items():
            spelling, role = spelled_role.split("/")
            owners[ending] = (role, spelling, algorithm)
    return owners


_OWNERS = MappingProxyType(_owners())
_STARTS = re.compile(r"\.|_(?=lora\.)")  # where an ending can start: "to_q.lora_up.weight", "to_q_lora.up.weight"
# PEFT writes the name of the adapter into the keys of its ModuleDicts: "lora_A.default.weight".
_NAMED = re.compile(r"(\.(?:lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector))\.([^.]+)(\.\w+)?")


def split_key(key: str) -> KeyParts | None:
    """Return the parts of a key, or None when no algorithm knows its ending."""
    for start in _STARTS.finditer(key):
        ending = key[start.start() :]
        name = ""
        if ending not in _OWNERS:
            named = _NAMED.fullmatch(ending) if ending.startswith(".lora_") else None
            if named is None:
                continue
            ending, name = named[1] + (named[3] or ""), named[2]
        if ending in _OWNERS:
            role, spelling, owner = _OWNERS[ending]
            return KeyParts(key[: start.start()], role, f"{spelling}/{name}", owner)
    return None
