"""What whoever loads a saved pipeline of diffusers has to choose: a device, and the name of the dtype's argument."""

from __future__ import annotations

from typing import Any

__all__ = ["best_device", "dtype_argument"]


def best_device(torch: Any) -> str:
    """Return the name of the first device that is there, of CUDA, MPS and the CPU."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def dtype_argument(version: str, dtype: Any) -> dict[str, Any]:
    """Return the dtype under the name that this version of diffusers has for it: 0.42 warns of the old one."""
    major, minor = map(int, version.split(".")[:2])
    return {"dtype" if (major, minor) >= (0, 42) else "torch_dtype": dtype}
