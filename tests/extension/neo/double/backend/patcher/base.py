"""The patcher of a model, and what loads it."""

from __future__ import annotations

import uuid
from collections import namedtuple
from typing import Any

import torch
from torch import Tensor, nn

from backend.patcher.lora import merge_lora_to_weight

Backup = namedtuple("Backup", ["weight", "inplace_update"])
COMPUTES_LORAS_IN = {"dtype": torch.float32}  # of a card that computes halves: float16


class Linear(nn.Linear):
    """A layer whose weight may be made in the forward pass."""

    weight_function: list[Any]

    def forward(self, inputs: Tensor) -> Tensor:
        weight = self.weight
        if self.__dict__.get("weight_function"):
            weight = weight.clone().to(inputs.dtype)  # type: ignore[assignment]
            for function in self.weight_function:
                weight = function(weight)
            assert weight.dtype == inputs.dtype, "a layer computes in one dtype"
        return nn.functional.linear(inputs, weight, self.bias)


class LowVramPatch:
    """What makes W′ in a forward pass."""

    def __init__(self, key: str, patches: dict[str, Any]) -> None:
        self.key, self.patches = key, patches

    def __call__(self, weight: Tensor) -> Tensor:
        return merge_lora_to_weight(self.patches[self.key], weight, self.key, weight.dtype)


class ModelPatcher:
    """A model, and what is to be done to its weights when it is loaded. Clones share the model and the originals."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.patches: dict[str, list[Any]] = {}
        self.backup: dict[str, Backup] = {}
        self.model_options: dict[str, Any] = {"transformer_options": {}}
        self.patches_uuid = uuid.uuid4()
        self.parent: ModelPatcher | None = None
        if not hasattr(model, "current_weight_patches_uuid"):
            model.current_weight_patches_uuid = None
            model.loads = 0

    def clone(self) -> Any:
        made = type(self)(self.model)
        made.patches = {key: list(patches) for key, patches in self.patches.items()}
        made.patches_uuid, made.backup, made.parent = self.patches_uuid, self.backup, self
        made.model_options = {key: _copied(value) for key, value in self.model_options.items()}
        return made

    def add_patches(
        self,
        patches: dict[str, Any],
        strength_patch: float = 1.0,
        strength_model: float = 1.0,
        *,
        filename: Any = None,
        online_mode: Any = None,
    ) -> list[str]:
        names = self.model.state_dict()
        taken = [key for key in patches if key in names]
        for key in taken:
            entry = (strength_patch, patches[key], strength_model, None, None, online_mode)
            self.patches[key] = [*self.patches.get(key, []), entry]
        self.patches_uuid = uuid.uuid4()
        return taken

    def partially_load(self, bytes_free: float = 1e30) -> None:
        """Load the model with these patches, unless it is loaded with equal ones."""
        if self.model.current_weight_patches_uuid == self.patches_uuid:
            return
        self.unpatch_model()
        self.model.loads += 1
        for name, module in self.model.named_modules():
            for own in list(module._parameters):
                key = f"{name}.{own}"
                if key not in self.patches:
                    continue
                size = module._parameters[own].numel() * 4
                online = any(entry[-1] for entry in self.patches[key])
                if own == "weight" and isinstance(module, Linear) and (online or size > bytes_free):
                    module.weight_function = [LowVramPatch(key, self.patches)]
                else:
                    bytes_free -= size
                    self._patch(module, own, key)
        self.model.current_weight_patches_uuid = self.patches_uuid

    def _patch(self, module: nn.Module, name: str, key: str) -> None:
        weight = module._parameters[name]
        assert weight is not None
        self.backup.setdefault(key, Backup(weight.data, False))
        made = merge_lora_to_weight(self.patches[key], weight.data.to(COMPUTES_LORAS_IN["dtype"], copy=True), key)
        module._parameters[name] = nn.Parameter(made.to(weight.dtype).clone(), requires_grad=False)

    def unpatch_model(self) -> None:
        """Give each weight its original back: in another Parameter."""
        for module in self.model.modules():
            module.__dict__.pop("weight_function", None)
        for key, backup in self.backup.items():
            path, _, name = key.rpartition(".")
            self.model.get_submodule(path)._parameters[name] = nn.Parameter(backup.weight, requires_grad=False)
        self.backup.clear()
        self.model.current_weight_patches_uuid = None


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(inner) for key, inner in value.items()}
    return list(value) if isinstance(value, list) else value
