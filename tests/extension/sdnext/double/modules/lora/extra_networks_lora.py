"""The program's own owner of the tag: adds 0.01 to a layer for each tag, fused or with a copy kept."""

from __future__ import annotations

from typing import Any

from torch import nn

from modules import extra_networks, shared
from modules.lora import lora_apply


class ExtraNetworkLora(extra_networks.ExtraNetwork):
    def __init__(self) -> None:
        super().__init__("lora")

    def activate(self, p: Any, params_list: list[Any], step: int = 0, include: Any = None, exclude: Any = None) -> None:
        layer = shared.sd_model.unet.conv_in
        names = tuple((params.positional[0], 1.0, [1.0] * 3, None) for params in params_list)
        fused = shared.opts.lora_fuse_native
        if names and getattr(layer, "network_weights_backup", None) is None:
            layer.network_weights_backup = True if fused else layer.weight.clone()
        if fused:
            change = 0.01 * (len(names) - len(getattr(layer, "network_current_names", ())))
            layer.weight = nn.Parameter(layer.weight + change, requires_grad=False)
        else:
            lora_apply.network_apply_weights(layer, 0.01 * len(names), None, layer.weight.device)
        layer.network_current_names = names

    def deactivate(self, p: Any, force: bool = False) -> None:
        pass
