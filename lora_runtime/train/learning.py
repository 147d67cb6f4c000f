"""What learns: optimiser, rates and running mean, and the one step that they take together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from lora_runtime.errors import TrainingError
from lora_runtime.train.config import Config

__all__ = ["Group", "Learner", "check_finite"]

Group = tuple[Mapping[str, nn.Parameter], float]  # parameters by name, and their learning rate


class Learner:
    """The parameters in training and all that changes them."""

    def __init__(self, groups: list[Group], config: Config, steps: int, device: torch.device) -> None:
        """`steps`: how many there will be. TrainingError where there is no such optimiser or scheduler."""
        from diffusers.optimization import get_scheduler
        from diffusers.training_utils import EMAModel

        self.parameters = {name: parameter for named, _ in groups for name, parameter in named.items()}
        self._list = list(self.parameters.values())
        self._clip = config.max_grad_norm
        self.optimizer = _optimizer(groups, config)
        try:
            self._scheduler = get_scheduler(
                config.lr_scheduler,
                self.optimizer,
                num_warmup_steps=config.lr_warmup_steps,
                num_training_steps=steps,
            )
        except ValueError as error:
            raise TrainingError(f"lr_scheduler {config.lr_scheduler}: {error}") from error
        self._mean = EMAModel(self._list, decay=config.ema_decay) if config.ema_decay else None
        self._scaler = _scaler(device) if config.mixed_precision == "fp16" else None

    @property
    def rates(self) -> list[float]:
        """The learning rate of each group now."""
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss."""
        (loss if self._scaler is None else self._scaler.scale(loss)).backward()

    def step(self, processes: int) -> None:
        """Take a step by the gradients of all processes together, and forget them."""
        if processes > 1:
            _add_up(self._list)
        if self._scaler is not None:
            self._scaler.unscale_(self.optimizer)
        if self._clip:
            nn.utils.clip_grad_norm_(self._list, self._clip)
        if self._scaler is None:
            self.optimizer.step()
        else:
            self._scaler.step(self.optimizer)
            self._scaler.update()
        self._scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self._mean is not None:
            self._mean.step(self._list)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Have the parameters be what is written, their running mean where one is kept, for a `with` block."""
        if self._mean is None:
            yield
            return
        self._mean.store(self._list)
        self._mean.copy_to(self._list)
        try:
            yield
        finally:
            self._mean.restore(self._list)

    def state(self) -> dict[str, Any]:
        """Return all that `load` needs to go on to the bit: tensors, numbers and texts in dicts and lists."""
        mean = self._mean
        return {
            "parameters": {name: parameter.detach() for name, parameter in self.parameters.items()},
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self._scheduler.state_dict(),
            "mean": None if mean is None else {"steps": mean.optimization_step, "values": mean.shadow_params},
            "scaler": None if self._scaler is None else self._scaler.state_dict(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Be what `state` says; TrainingError where it is of other parameters."""
        values = state["parameters"]
        own = {name: tuple(parameter.shape) for name, parameter in self.parameters.items()}
        if own != {name: tuple(value.shape) for name, value in values.items()}:
            raise TrainingError("the state is of other layers than these; --force begins anew")
        with torch.no_grad():
            for name, value in values.items():
                self.parameters[name].copy_(value)
            if self._mean is not None:
                self._mean.optimization_step = state["mean"]["steps"]
                for mine, value in zip(self._mean.shadow_params, state["mean"]["values"], strict=True):
                    mine.copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        self._scheduler.load_state_dict(state["scheduler"])
        if self._scaler is not None:
            self._scaler.load_state_dict(state["scaler"])


def _optimizer(groups: list[Group], config: Config) -> Any:
    """Return the optimiser by its name in torch.optim, or by its dotted name."""
    module, _, name = config.optimizer_type.rpartition(".")
    try:
        kind = getattr(import_module(module or "torch.optim"), name)
    except (ImportError, AttributeError) as error:
        raise TrainingError(
            f"optimizer_type {config.optimizer_type}: {error}; give one of torch.optim, such as AdamW, or the dotted "
            "name of one that is installed, such as prodigyopt.Prodigy"
        ) from error
    tables = [{"params": list(named.values()), "lr": rate} for named, rate in groups]
    try:
        return kind(tables, lr=config.learning_rate, **dict(config.optimizer_args))
    except (TypeError, ValueError) as error:
        raise TrainingError(f"optimizer_type {config.optimizer_type} with {config.optimizer_args}: {error}") from error


def _scaler(device: torch.device) -> Any:
    """Return torch's scaler of gradients, which fp16 needs and knows on a GPU."""
    if device.type != "cuda":
        raise TrainingError(f'mixed_precision "fp16" on {device.type}: give "bf16" or "no"')
    if hasattr(torch.amp, "GradScaler"):
        return torch.amp.GradScaler("cuda")
    return torch.cuda.amp.GradScaler()  # before torch 2.3


def _add_up(parameters: list[nn.Parameter]) -> None:
    """Give each process the sum of all processes' gradients, in one message.

    What no gradient reaches has none in any of them, as all compute the same graph.
    """
    import torch.distributed as distributed

    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    for gradient, part in zip(gradients, torch.split(flat, [each.numel() for each in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def check_finite(loss: float, number: int, config: Config) -> None:
    """Raise TrainingError where a loss is no number any more; fp16 leaves such a step out by itself."""
    if not math.isfinite(loss) and config.mixed_precision != "fp16":
        raise TrainingError(
            f"step {number}: the loss is {loss}; give a lower learning_rate ({config.learning_rate:g} now), "
            "max_grad_norm 1, or another mixed_precision"
        )
