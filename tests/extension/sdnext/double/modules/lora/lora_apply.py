"""Weights that are kept as copies, and put back as new Parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def network_apply_weights(self: Any, updown: Any, ex_bias: Any, device: Any, deactivate: bool = False) -> None:
    """Add to the copy of a weight, or put it back where there is nothing to add."""
    backup = getattr(self, "network_weights_backup", None)
    if isinstance(backup, torch.Tensor):
        value = backup.to(device)
        self.weight = nn.Parameter(value if updown is None else value + updown, requires_grad=False)
