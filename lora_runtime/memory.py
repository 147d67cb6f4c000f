"""How much memory is free, on any device that tells and of the host; and memory that devices copy without a detour."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

__all__ = ["OutOfMemory", "free_bytes", "pinned", "waiter"]

# torch has it under one name for all devices since 2.5.
OutOfMemory = cast("type[RuntimeError]", getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError))

_CGROUP = Path("/sys/fs/cgroup")


def free_bytes(device: torch.device) -> int | None:
    """Return how many bytes are free on a device, or None where it does not tell.

    What the device's allocator keeps for reuse counts as free. MPS and the CPU share the host's memory.
    """
    if device.type in ("cpu", "mps"):
        return _host_bytes()
    backend: Any = getattr(torch, device.type, None)
    ask: Callable[..., tuple[int, int]] | None = getattr(backend, "mem_get_info", None)
    if ask is None:
        ask = getattr(getattr(torch, "accelerator", None), "get_memory_info", None)
    if ask is None:
        return None
    try:
        free, _ = ask(device)
    except (RuntimeError, NotImplementedError):  # a name without anything behind it
        return None
    reserved, used = (getattr(backend, name, None) for name in ("memory_reserved", "memory_allocated"))
    kept = reserved(device) - used(device) if reserved is not None and used is not None else 0
    return int(free + kept)


def pinned(size: int) -> Tensor:
    """Return bytes of the host that devices copy to and from without a detour; ordinary memory where there are none."""
    try:
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)
    except RuntimeError:  # no device that pins, or no more that may be pinned
        return torch.empty(size, dtype=torch.uint8)


def waiter(device: torch.device) -> Callable[[torch.device], None] | None:
    """Return what waits for a device to have done all that it was asked for."""
    wait: Callable[[torch.device], None] | None = getattr(getattr(torch, device.type, None), "synchronize", None)
    return wait


def _host_bytes() -> int | None:
    """Return what programs can still take of the host's memory, within the limit of the container."""
    known = [size for size in (_available(), _left_of_container()) if size is not None]
    return min(known, default=None)


def _available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:  # no Linux
        pages = getattr(os, "sysconf_names", {}).get("SC_AVPHYS_PAGES")
        return None if pages is None else os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")
    found = [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")]
    return found[0] if found else None


def _left_of_container() -> int | None:
    """Return what the limit of a Linux container leaves; pages of files that it holds can be taken back."""
    try:
        limit = (_CGROUP / "memory.max").read_text(encoding="ascii").strip()
        if limit == "max":
            return None
        used = int((_CGROUP / "memory.current").read_text(encoding="ascii"))
        lines = (_CGROUP / "memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    files = sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
    return max(0, int(limit) - used + files)
