"""A warning for whoever trains weights that show LoRAs: what an optimiser writes is trained with the LoRA inside."""

from __future__ import annotations

import logging
import weakref
from functools import cache
from typing import Any

from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from lora_runtime.scopes import PATCHER

__all__ = ["watch_optimizers"]

logger = logging.getLogger("lora_runtime")
_warned: weakref.WeakSet[Optimizer] = weakref.WeakSet()


@cache
def watch_optimizers() -> None:
    """Look at each optimiser of the process before it steps; warn once for each that would change patched weights."""
    register_optimizer_step_pre_hook(_look)


def _look(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if optimizer in _warned:
        return
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    found = map(PATCHER.find, parameters)
    count = sum(weight is not None and weight.patched for weight in found)
    if count:
        _warned.add(optimizer)
        logger.warning(
            "%s trains %d of its %d parameters while LoRAs are in their weights: they learn with the LoRA inside, and "
            "restore leaves what was written. Restore first, or train adapters beside the weights (PEFT)",
            type(optimizer).__name__,
            count,
            len(parameters),
        )
