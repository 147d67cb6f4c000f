"""Which algorithm owns a key: the longest ending that any of them knows decides."""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import NamedTuple

from lora_runtime.adapters import (
    abba,
    adalora,
    beft,
    c3a,
    deft,
    delora,
    difference,
    dora,
    embedding,
    fourierft,
    glora,
    gralora,
    hira,
    hra,
    ia3,
    loha,
    lokr,
    lora,
    miss,
    mlx,
    oft,
    peft_glora,
    peft_ia3,
    peft_oft,
    randlora,
    replaced,
    road,
    shira,
    supertuning,
    tokens,
    unilora,
    vblora,
    vera,
    waveft,
)
from lora_runtime.adapters.base import Algorithm
from lora_runtime.adapters.pending import COUNTED, PENDING, Pending
from lora_runtime.key_endings import SHARED, locate

__all__ = ["ALGORITHMS", "KeyParts", "companion", "replaced_parts", "split_key"]

# The adapters of one module are built, and summed, in this order. What wraps others is last.
ALGORITHMS: tuple[Algorithm, ...] = (
    lora.ALGORITHM,
    embedding.ALGORITHM,
    mlx.ALGORITHM,
    loha.ALGORITHM,
    lokr.ALGORITHM,
    abba.ALGORITHM,
    ia3.ALGORITHM,
    peft_ia3.ALGORITHM,
    glora.ALGORITHM,
    peft_glora.ALGORITHM,
    oft.ALGORITHM,
    peft_oft.OFT,
    peft_oft.BOFT,
    hra.ALGORITHM,
    hira.ALGORITHM,
    miss.ALGORITHM,
    c3a.ALGORITHM,
    road.ALGORITHM,
    delora.ALGORITHM,
    gralora.ALGORITHM,
    deft.ALGORITHM,
    beft.ALGORITHM,
    shira.ALGORITHM,
    vera.VERA,
    vera.PVERA,
    randlora.ALGORITHM,
    vblora.ALGORITHM,
    unilora.ALGORITHM,
    fourierft.ALGORITHM,
    waveft.ALGORITHM,
    difference.FULL,
    difference.NORM,
    replaced.ALGORITHM,
    tokens.ALGORITHM,
    supertuning.ALGORITHM,
    adalora.ALGORITHM,
    dora.ALGORITHM,
)


class KeyParts(NamedTuple):
    """A key of a file, taken apart."""

    stem: str  # names the module
    role: str  # names the tensor within its algorithm: "up", "down", "alpha" …
    spelling: str = ""  # tensors belong together when they are spelled alike
    owner: Algorithm | Pending | None = None  # None for what algorithms share: alpha, scale and reshape_weight


_Owned = tuple[str, str, Algorithm | Pending | None]  # role, spelling, owner


def _owners() -> dict[str, _Owned]:
    owners: dict[str, _Owned] = {f".{role}": (role, "/", None) for role in SHARED}
    owners.update((ending, (ending, "/", pending)) for ending, pending in PENDING.items())
    for algorithm in ALGORITHMS:
        for ending, spelled_role in algorithm.endings.items():
            spelling, role = spelled_role.split("/")
            owners[ending] = (role, f"{spelling}/", algorithm)
    return owners


_OWNERS = MappingProxyType(_owners())
_TAILS = MappingProxyType({ending: tail for algorithm in ALGORITHMS for ending, tail in algorithm.tails.items()})
_COMPANIONS = MappingProxyType(
    {ending: (spelled, algorithm) for algorithm in ALGORITHMS for ending, spelled in algorithm.companions.items()}
)
# cloneofsimo's first format: places are counted in the order of the model's modules.
_COUNTED = re.compile(r"(\w+:\d+):(?:up|down)")


def split_key(key: str) -> KeyParts | None:
    """Return the parts of a key, or None when no algorithm knows its ending."""
    found = locate(key, _OWNERS)
    if found is not None:
        start, ending, name = found
        role, spelling, owner = _OWNERS[ending]
        return KeyParts(key[:start] + _TAILS.get(ending, ""), role, spelling + name, owner)
    counted = _COUNTED.fullmatch(key)
    return None if counted is None else KeyParts(counted[1], key, "/", COUNTED)


def replaced_parts(key: str) -> KeyParts | None:
    """Return the parts of the key of a parameter that is saved whole under the model's own name, or None."""
    stem, _, role = key.rpartition(".")
    return KeyParts(stem, role, "replaced/", replaced.ALGORITHM) if stem and role in ("weight", "bias") else None


def companion(key: str) -> KeyParts | None:
    """Return the parts of a key that an algorithm owns only beside others of the same module, or None."""
    stem, dot, ending = key.rpartition(".")
    found = _COMPANIONS.get(dot + ending)
    if found is None:
        return None
    spelled_role, algorithm = found
    spelling, role = spelled_role.split("/")
    return KeyParts(stem, role, f"{spelling}/", algorithm)
