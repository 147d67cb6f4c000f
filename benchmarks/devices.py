"""What a real GPU, the pretend accelerator and the CPU have in common: peaks of memory, waits, a limit, and a name."""

from __future__ import annotations

import contextlib
import gc
import subprocess
import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.memory import PeakMemory, used

__all__ = ["Device", "device_named"]

ROOT = Path(__file__).resolve().parent.parent
_GB = 1e9


class Device(ABC):
    """A device that models are measured on. Sizes are bytes."""

    can_limit = True  # whether it can be given less memory than it has
    can_tell_waits = True

    def __init__(self, device: torch.device) -> None:
        """Measure on this device."""
        self.device = device

    @abstractmethod
    def card(self) -> dict[str, Any]:
        """Return what the figures were measured on: name, driver, memory."""

    @abstractmethod
    def used(self) -> int:
        """Return the bytes that tensors take on it now."""

    @abstractmethod
    def peak(self) -> contextlib.AbstractContextManager[Callable[[], int]]:
        """Give what returns the most bytes in use since the block began, above those in use then."""

    def free(self) -> int | None:
        """Return the bytes that are free, None where it does not tell."""
        from lora_runtime.memory import free_bytes

        return free_bytes(self.device)

    @contextlib.contextmanager
    def limited(self, extra: int) -> Iterator[None]:
        """Leave the device only `extra` bytes above what is in use."""
        raise NotImplementedError
        yield

    @contextlib.contextmanager
    def waits(self) -> Iterator[Callable[[], int]]:
        """Give what returns how often the host had to wait for the device within the block."""
        raise NotImplementedError
        yield lambda: 0

    def settle(self) -> None:
        """Give back what nobody needs, so that the next measurement starts from the same."""
        gc.collect()


class Cuda(Device):
    """A GPU of NVIDIA, or one of AMD under torch's name for it."""

    def card(self) -> dict[str, Any]:
        """Return name, driver, memory and what it computes in."""
        properties = torch.cuda.get_device_properties(self.device)
        return {
            "name": properties.name,
            "driver": _driver(),
            "cuda": torch.version.cuda or torch.version.hip,
            "memory_gb": round(properties.total_memory / _GB, 1),
            "capability": f"{properties.major}.{properties.minor}",
        }

    def used(self) -> int:
        """Return what torch's allocator has given out."""
        return torch.cuda.memory_allocated(self.device)

    @contextlib.contextmanager
    def peak(self) -> Iterator[Callable[[], int]]:
        """Give the allocator's own record."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = self.used()
        yield lambda: torch.cuda.max_memory_allocated(self.device) - before

    @contextlib.contextmanager
    def limited(self, extra: int) -> Iterator[None]:
        """Limit this process's share of the memory; mem_get_info knows nothing of it."""
        self.settle()
        total = torch.cuda.get_device_properties(self.device).total_memory
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(self.device) + extra) / total)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)

    @contextlib.contextmanager
    def waits(self) -> Iterator[Callable[[], int]]:
        """Count the warnings of torch's mode for that."""
        torch.cuda.synchronize()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield lambda: sum("synchronizing" in str(warning.message) for warning in caught)
            finally:
                torch.cuda.set_sync_debug_mode("default")

    def settle(self) -> None:
        """Give the allocator's reserve back too."""
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


class Pretend(Device):
    """The accelerator of tests/device, whose memory the host cannot touch."""

    def __init__(self) -> None:
        """Start it; RuntimeError where it cannot be had."""
        sys.path.insert(0, str(ROOT / "tests"))
        from device import pretend

        reason = pretend.why_not()
        if reason is not None:
            raise RuntimeError(reason)
        self.native = pretend.start()
        self.native.reset()
        super().__init__(torch.device("pretend:0"))

    def card(self) -> dict[str, Any]:
        """Return its name: no figure of it is one of a GPU."""
        return {"name": "pretend accelerator (no GPU: its times mean nothing)"}

    def used(self) -> int:
        """Return the bytes that it has given out."""
        return self.native.used

    def peak(self) -> contextlib.AbstractContextManager[Callable[[], int]]:
        """Give its own record."""
        return self.native.peak()

    @contextlib.contextmanager
    def limited(self, extra: int) -> Iterator[None]:
        """Limit its memory."""
        self.settle()
        self.native.limit(self.native.used + extra)
        try:
            yield
        finally:
            self.native.reset()

    @contextlib.contextmanager
    def waits(self) -> Iterator[Callable[[], int]]:
        """Count the waits and the copies to the host that the product asked for."""
        with self.native.logged() as log:
            yield lambda: log.ours["sync"] + log.ours["d2h"]


class Host(Device):
    """The CPU: nobody waits for it, and its memory has no limit that could be set."""

    can_limit = False
    can_tell_waits = False

    def card(self) -> dict[str, Any]:
        """Return how many threads torch has."""
        return {"name": f"CPU, {torch.get_num_threads()} threads"}

    def used(self) -> int:
        """Return the process's own memory."""
        return used(self.device)

    @contextlib.contextmanager
    def peak(self) -> Iterator[Callable[[], int]]:
        """Give what a look each millisecond has seen."""
        with PeakMemory(self.device) as memory:
            yield lambda: memory.extra


def device_named(name: str) -> Device:
    """Return the device of this name; RuntimeError where it is not there."""
    if name == "pretend":
        return Pretend()
    if name == "cpu":
        return Host(torch.device("cpu"))
    if not torch.cuda.is_available():
        raise RuntimeError("torch finds no GPU: install a build of torch for it, or try --device pretend")
    return Cuda(torch.device(name if ":" in name else f"{name}:0"))


def _driver() -> str:
    """Return the driver's version as its own tool says it, "unknown" without the tool."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.splitlines()[0].strip() if done.stdout.strip() else "unknown"
