"""Where factorisations are made: the CPU in float64, or a device in float32."""

from __future__ import annotations

import torch

__all__ = ["device_named"]


def device_named(name: str | torch.device | None) -> torch.device | None:
    """Return a device that can be used, None for the CPU in float64; ValueError for one that cannot."""
    if name is None:
        return None
    try:
        device = torch.device(name)
        torch.zeros((), device=device, dtype=torch.float32)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        why = str(error).partition("\n")[0].rstrip(".")
        raise ValueError(f"device {name}: cannot be used here ({why}); leave it out for the CPU in float64") from error
    return device
