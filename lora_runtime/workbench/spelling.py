"""How what was made is called in the file that is written: as the file that it came from has it.

A module keeps its name. Where it had factors, the new ones have the old keys; where it had none, kohya's endings go
with kohya's names (`lora_unet_…_to_q`) and PEFT's with paths (`unet.….to_q`), as diffusers, PEFT and the WebUI read
them. A file says scale = alpha / rank. So alpha is the rank, and a path, for which nobody reads an alpha, has none.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lora_runtime.adapters import Adapter, LowRank, split_key
from lora_runtime.adapters.embedding import LowRankTable
from lora_runtime.key_endings import ending_of

__all__ = ["difference_keys", "factor_keys", "has_alpha", "roles_of"]

_MODULATION = ".modulation"  # a bare parameter of Wan: the ending of its key stands for a part of its name


def factor_keys(stem: str, adapters: tuple[Adapter, ...], up: Tensor, down: Tensor, alpha: float) -> dict[str, Tensor]:
    """Return a module's factors (out, r, 1…) and (r, in, k…) by key, with their alpha where its name goes with one.

    `adapters`: those that the module had, none where it is new. `alpha` is the rank, or with `has_alpha` any number.
    """
    first = adapters[0] if adapters else None
    if isinstance(first, LowRankTable):
        role = roles_of(first)
        return {role["A"]: up.t().contiguous(), role["B"]: down.t().contiguous(), **_alpha(stem, first, alpha)}
    roles = roles_of(first) if isinstance(first, LowRank) else {}
    if first is None or not {"up", "down"} <= roles.keys() or _is_bare(first):
        spelling = "peft" if "." in stem else "kohya"
        roles = {role: stem + ending_of("lora", f"{spelling}/{role}") for role in ("up", "down")}
    return {roles["up"]: up, roles["down"]: down, **_alpha(stem, first, alpha)}


def has_alpha(stem: str, adapters: tuple[Adapter, ...]) -> bool:
    """Return whether the module's keys go with an alpha."""
    return "." not in stem or any(_alpha_key(adapter) is not None for adapter in adapters[:1])


def difference_keys(stem: str, parameter: str, adapters: tuple[Adapter, ...], values: Tensor) -> dict[str, Tensor]:
    """Return a full difference of a weight or a bias by key."""
    if stem.endswith(_MODULATION) and parameter == "weight":
        return {stem.removesuffix(_MODULATION) + ending_of("full", "modulation/weight"): values}
    norm = any(adapter.algorithm == "norm" for adapter in adapters)
    kind, spelling = ("norm", "norm") if norm else ("full", "diff")
    return {stem + ending_of(kind, f"{spelling}/{parameter}"): values}


def _alpha(stem: str, adapter: Adapter | None, alpha: float) -> dict[str, Tensor]:
    own = None if adapter is None else _alpha_key(adapter)
    if own is None and "." in stem:
        return {}
    return {own or f"{stem}.alpha": torch.tensor(alpha, dtype=torch.float32)}


def _alpha_key(adapter: Adapter) -> str | None:
    return next((key for key in adapter.keys if key.endswith(".alpha")), None)


def _is_bare(adapter: Adapter) -> bool:
    """Return whether the keys lack their `.weight`: Nunchaku's, whose packed factors these would be taken for, and
    AdaLoRA's, which PEFT reads as nothing else.
    """
    bare = tuple(ending_of("lora", f"{spelling} bare/up") for spelling in ("kohya", "peft"))
    return any(key.endswith(bare) for key in adapter.keys)


def roles_of(adapter: Adapter) -> dict[str, str]:
    """Return the keys of an adapter by their roles, such as "up" and "down"."""
    parts = ((split_key(key), key) for key in adapter.keys)
    return {found.role: key for found, key in parts if found is not None}
