"""Products whose float32 has all its digits, whatever a host has allowed for speed."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

__all__ = ["full_precision"]

_FAST = {"tf32", "bf16"}  # what a host may have allowed inside float32 products


class _Switches:
    """The process-wide switches that allow TF32 and bfloat16 inside float32 products.

    Several threads may multiply at once: the first in turns them off, the last out turns them back. They are left alone
    where no host turned them before.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside: weakref.WeakSet[_FullPrecision] = weakref.WeakSet()  # an interrupted one goes with its frames
        self._turned: list[tuple[Callable[[str], None], str]] = []

    def turn_off(self, who: _FullPrecision) -> None:
        with self._lock:
            self._inside.add(who)
            self._turned += _turn_to_full()  # also what a host has turned since the first came in

    def turn_back(self, who: _FullPrecision) -> None:
        with self._lock:
            self._inside.discard(who)
            if not self._inside:
                turned, self._turned = self._turned, []
                for turn, before in reversed(turned):
                    turn(before)


def _nobody() -> None:
    return None


class _Here(threading.local):
    """The outermost `full_precision` that a thread is within."""

    outermost: Callable[[], _FullPrecision | None] = staticmethod(_nobody)


_SWITCHES, _HERE = _Switches(), _Here()


class _FullPrecision:
    """See `full_precision`."""

    __slots__ = ("__weakref__", "_outermost")

    def __enter__(self) -> None:
        self._outermost = _HERE.outermost() is None
        if self._outermost:
            try:
                _SWITCHES.turn_off(self)
                _HERE.outermost = weakref.ref(self)
            except BaseException:  # an interrupt: the end of a block that has not begun never comes
                self.__exit__()
                raise

    def __exit__(self, *error: object) -> None:
        if self._outermost:
            _HERE.outermost = _nobody
            _SWITCHES.turn_back(self)


def full_precision() -> _FullPrecision:
    """Return a context within which float32 products have all their digits; TF32 would cost 13 bits of a delta.

    Within another one of the same thread it does nothing: to look at the switches for each of many weights took a tenth
    of the time of a small one's merge.
    """
    return _FullPrecision()


def _turn_to_full() -> list[tuple[Callable[[str], None], str]]:
    """Turn what is fast to full precision; return how to turn each back, and to what."""
    # torch >= 2.9 has a setting per backend, and reading the older process-wide one raises once those were used.
    if hasattr(torch.backends, "fp32_precision"):
        backends: list[Any] = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]  # type: ignore[attr-defined]
        before = [backend.fp32_precision for backend in backends]
        inherited = torch.backends.fp32_precision
        fast = [(b, p) for b, p in zip(backends, before, strict=True) if (inherited if p == "none" else p) in _FAST]
        for backend, _ in fast:
            backend.fp32_precision = "ieee"
        return [(partial(setattr, backend, "fp32_precision"), precision) for backend, precision in fast]
    precision = torch.get_float32_matmul_precision()
    if precision == "highest":
        return []
    torch.set_float32_matmul_precision("highest")
    return [(torch.set_float32_matmul_precision, precision)]
