"""Where weights are between two calls.

`sequential`: by accelerate, as in the program: placeholders on meta, values in a map. `balanced`: a hook before each
call of a component puts it on the device, where every Parameter is a new one, and into a map the layers for which there
is no room; the device is the host's memory here. `room` is how many modules with parameters there is room for.
"""

from __future__ import annotations

from typing import Any

import accelerate.hooks
import torch
from torch import nn

from modules import shared

room = 1_000_000
offload_hook_instance: Any = None


def components(pipe: Any) -> list[nn.Module]:
    return [part for part in pipe.components.values() if isinstance(part, nn.Module)]


class OffloadHook(accelerate.hooks.ModelHook):  # type: ignore[misc]
    """Puts a component on the device before it is called."""

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not getattr(module, "dispatched", False):
            module.dispatched = True  # type: ignore[assignment]
            for index, part in enumerate([part for part in module.modules() if part._parameters]):
                if index < room:
                    for name, parameter in part._parameters.items():
                        if parameter is not None:
                            part._parameters[name] = nn.Parameter(parameter.data.clone(), requires_grad=False)
                else:
                    kept = accelerate.hooks.AlignDevicesHook(execution_device="cpu", offload=True)
                    accelerate.hooks.add_hook_to_module(part, kept, append=True)
        return args, kwargs


def disable_offload(sd_model: Any) -> None:
    """Take the hooks off, if there are any."""
    if getattr(sd_model, "has_accelerate", False):
        for module in components(sd_model):
            accelerate.hooks.remove_hook_from_module(module, recurse=True)
        sd_model.has_accelerate = False


def apply_balanced_offload_to_module(module: nn.Module, op: str = "apply", force: bool = False) -> None:
    """Take a component from the device; the next call puts it there again."""
    accelerate.hooks.remove_hook_from_module(module, recurse=True)
    module.to("cpu")
    module.dispatched = False  # type: ignore[assignment]
    accelerate.hooks.add_hook_to_module(module, offload_hook_instance, append=True)


def apply_balanced_offload(sd_model: Any) -> Any:
    """Take all components from the device, the first time: later on a call does it."""
    global offload_hook_instance
    if shared.opts.diffusers_offload_mode == "balanced" and not getattr(sd_model, "has_accelerate", False):
        offload_hook_instance = OffloadHook()
        for module in components(sd_model):
            apply_balanced_offload_to_module(module)
        sd_model.has_accelerate = True
    return sd_model


def set_diffuser_offload(sd_model: Any, op: str = "model") -> None:
    """Offload as the setting says."""
    mode = shared.opts.diffusers_offload_mode
    if mode == "balanced":
        apply_balanced_offload(sd_model)
    elif mode == "sequential" and not getattr(sd_model, "has_accelerate", False):
        for module in components(sd_model):
            accelerate.cpu_offload(module, torch.device("cpu"))
        sd_model.has_accelerate = True
