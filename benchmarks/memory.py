"""The peak of what a process takes for itself."""

from __future__ import annotations

import ctypes
import gc
import os
import threading
import time
from collections.abc import Callable
from types import TracebackType

import torch

__all__ = ["PeakMemory", "peak_of", "trim"]


def trim() -> None:
    """Give what was freed back to the system, so that its reuse does not hide what is allocated next."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return  # another system: nothing to trim


class PeakMemory:
    """Within its `with` block, notes the most memory in use; afterwards `.extra` is how far that was above `baseline`.

    On the CPU it is the process's own memory: pages of mapped files are left out, as the system takes them back when
    it needs them. It is sampled every millisecond. On CUDA it is what torch's allocator gave out.
    """

    def __init__(self, device: torch.device, baseline: int | None = None) -> None:
        """Measure above `baseline` bytes, or above what is in use when the block is entered."""
        self.device = device
        self.baseline = used(device) if baseline is None else baseline
        self.peak = self.baseline
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @property
    def extra(self) -> int:
        """The bytes above the baseline."""
        return max(0, self.peak - self.baseline)

    def __enter__(self) -> PeakMemory:
        """Start to watch."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop."""
        if self.device.type == "cuda":
            self.peak = torch.cuda.max_memory_allocated(self.device)
            return
        self._stop.set()
        self._thread.join()
        self.peak = max(self.peak, used(self.device))

    def _watch(self) -> None:
        while not self._stop.is_set():
            self.peak = max(self.peak, used(self.device))
            time.sleep(0.001)


def peak_of(run: Callable[[], object]) -> int:
    """Return the bytes that a call takes on the CPU, after one that loads what it needs."""
    trim()
    with PeakMemory(torch.device("cpu")) as memory:
        run()
    return memory.extra


def used(device: torch.device) -> int:
    """Return the bytes in use now."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    host = _resident()
    return host + torch.mps.driver_allocated_memory() if device.type == "mps" else host


def _resident() -> int:
    """Return the process's own resident bytes, without those of mapped files where the system tells them apart."""
    try:
        with open("/proc/self/statm", "rb") as statm:  # noqa: PTH123 - read a thousand times a second
            _, resident, shared, *_ = statm.read().split()
        return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        import psutil  # type: ignore[import-untyped]

        return int(psutil.Process().memory_info().rss)
