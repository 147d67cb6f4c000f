"""The product of two float32 factors, by the fastest kernel that the processor has for it."""

from __future__ import annotations

import platform
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["block_bytes", "onednn_is_faster", "product"]

# Rows are summed in blocks, so that the float32 sum of a half-precision weight stays in the cache and never exists as a
# whole; whole-weight temporaries took twice the time. With torch.mm 4 MB was fastest on two cores (2 MB 1.02, 1 MB 1.1
# to 1.3 times that), with oneDNN 2 MB (in bfloat16 4 MB 1.1, 1 MB 1.2 times that; in float32 1.0 and 1.2). On other
# devices a block only bounds the temporary.
_BLOCK_BYTES, _ONEDNN_BLOCK_BYTES = 4 << 20, 2 << 20
_DEVICE_BLOCK_BYTES = 64 << 20


def block_bytes(device: torch.device) -> int:
    """Return how many bytes of a float32 sum are best made at a time."""
    if device.type != "cpu":
        return _DEVICE_BLOCK_BYTES
    return _BLOCK_BYTES if _onednn() is None else _ONEDNN_BLOCK_BYTES


def product(up: Tensor, down: Tensor, memory: Callable[[], Tensor]) -> Tensor:
    """Return up @ down, (rows, columns), from (rows, R) and (R, columns) of one dtype and device.

    `memory` gives an uninitialised (rows, columns) tensor, which the product may fill. The choice of a kernel follows
    from the processor, the dtype and the device alone: the same sum has the same bits in every process.
    """
    if up.is_cpu and up.dtype == torch.float32 and up.shape[1] and (linear := _onednn()) is not None:
        found: Tensor = linear(up, down.mT, None, "none", [], "")
        return found
    return torch.mm(up, down, out=memory())


@cache
def _onednn() -> Any:
    """Return oneDNN's product for linear layers where it is faster than torch.mm and as exact, None elsewhere.

    No public function leads to it with plain tensors: `to_mkldnn` and a convolution of size 1 copy what they are given.
    """
    linear = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if onednn_is_faster() else None
    if linear is None:
        return None
    up, down = torch.linspace(-1, 1, 16 * 96).view(16, 96), torch.linspace(0.5, 1.5, 96 * 16).view(96, 16)
    try:
        found = linear(up, down.mT, None, "none", [], "")
    except (RuntimeError, TypeError):  # a private function: it may be another one by now
        return None
    return linear if torch.allclose(found.double(), up.double() @ down.double(), rtol=0.0, atol=1e-4) else None


def onednn_is_faster() -> bool:
    """Return whether this processor is one of AMD's with AVX-512.

    torch.mm is MKL's, which leaves AVX-512 unused on processors that are not Intel's: the products of 160 weights of
    SD1.5 at rank 96 took 264 ms with it on an EPYC, 125 with oneDNN, and 143 as a convolution of size 1, oneDNN as
    well. On a machine of an earlier trial neither was always ahead: 0.9 and 1.1 times the other.
    """
    if "avx512" not in torch.backends.cpu.get_cpu_capability().lower():
        return False
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = platform.processor()
    return "AuthenticAMD" in text
