"""The patchers of a model: one writes W′ when it loads, as far as there is memory; the dynamic one writes nothing."""

from __future__ import annotations

import contextlib
import uuid
from collections import namedtuple
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from comfy import model_management
from comfy.lora import calculate_weight, prefetched

Backup = namedtuple("Backup", ["weight", "inplace_update"])


class Linear(nn.Linear):
    """A layer whose weight may be made in the forward pass."""

    def forward(self, inputs: Tensor) -> Tensor:
        weight: Tensor = self.weight
        own = self.__dict__
        for function in own.get("weight_function", ()):
            weight = function(weight.detach().to(inputs.dtype, copy=True))
        if own.get("weight_lowvram_function") is not None:
            weight = own["weight_lowvram_function"](weight.detach().to(inputs.dtype, copy=True))
        assert weight.dtype == inputs.dtype, "a layer computes in one dtype"
        return nn.functional.linear(inputs, weight, self.bias)


class LowVramPatch:
    """What makes W′ in a forward pass; it works on copies of the patches, whose tensors may be on another device."""

    def __init__(self, key: str, patches: dict[str, Any], *, moves: bool = False) -> None:
        self.key, self.patches, self.moves = key, patches, moves

    def __call__(self, weight: Tensor) -> Tensor:
        own = self.patches[self.key]
        if self.moves:
            own = [(entry[0], prefetched(entry[1]), *entry[2:]) for entry in own]
        return calculate_weight(own, weight, self.key, weight.dtype)


class ModelPatcher:
    """A model, and what is to be done to its weights when it is loaded. Clones share the model and the originals."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.patches: dict[str, list[Any]] = {}
        self.backup: dict[str, Backup] = {}
        self.hook_backup: dict[str, Any] = {}
        self.model_options: dict[str, Any] = {"transformer_options": {}}
        self.attachments: dict[str, Any] = {}
        self.wrappers: dict[str, dict[str, list[Any]]] = {}
        self.injections: dict[str, list[Any]] = {}
        self.is_injected = False
        self.patches_uuid = uuid.uuid4()
        self.parent: ModelPatcher | None = None
        if not hasattr(model, "current_weight_patches_uuid"):
            model.current_weight_patches_uuid = None
            model.loads = 0

    def clone(self, model: Any = None) -> Any:
        """Return a clone; with `model`, of another copy of the model, as the program makes one for its hooks."""
        made = type(self)(self.model if model is None else model)
        made.patches = {key: list(patches) for key, patches in self.patches.items()}
        made.patches_uuid, made.parent = self.patches_uuid, self
        if model is None:
            made.backup, made.hook_backup = self.backup, self.hook_backup
        made.attachments = dict(self.attachments)
        made.wrappers = {kind: {key: list(own) for key, own in keys.items()} for kind, keys in self.wrappers.items()}
        made.injections = {key: list(own) for key, own in self.injections.items()}
        made.is_injected = self.is_injected  # although nobody has injected anything for this one
        return made

    def set_attachments(self, key: str, attachment: Any) -> None:
        self.attachments[key] = attachment

    def get_attachment(self, key: str) -> Any:
        return self.attachments.get(key)

    def add_wrapper_with_key(self, kind: str, key: str, wrapper: Any) -> None:
        self.wrappers.setdefault(kind, {}).setdefault(key, []).append(wrapper)

    def remove_wrappers_with_key(self, kind: str, key: str) -> None:
        self.wrappers.get(kind, {}).pop(key, None)

    def set_injections(self, key: str, injections: list[Any]) -> None:
        self.injections[key] = injections

    def remove_injections(self, key: str) -> None:
        self.injections.pop(key, None)

    def add_patches(
        self, patches: dict[str, Any], strength_patch: float = 1.0, strength_model: float = 1.0
    ) -> list[str]:
        with self.ejected():
            names = self.model.state_dict()
            taken = [key for key in patches if key in names]
            for key in taken:
                self.patches.setdefault(key, []).append((strength_patch, patches[key], strength_model, None, None))
            self.patches_uuid = uuid.uuid4()
        return taken

    @contextlib.contextmanager
    def ejected(self) -> Iterator[None]:
        """Take out what is injected for the time of a `with` block."""
        before = self.is_injected
        self.eject_model()
        try:
            yield
        finally:
            if before:
                self.inject_model()

    def inject_model(self) -> None:
        if not self.is_injected:
            for injection in [one for own in self.injections.values() for one in own]:
                injection.inject(self)
                self.is_injected = True

    def eject_model(self) -> None:
        if self.is_injected:
            for injection in [one for own in self.injections.values() for one in own]:
                injection.eject(self)
            self.is_injected = False

    def detach(self) -> None:
        """Make way for another clone: the weights stay until that one loads its own."""
        self.eject_model()

    def partially_load(self, bytes_free: float) -> None:
        """Load the model with these patches, unless it is loaded with equal ones; what is injected is so anew."""
        self.eject_model()
        if self.model.current_weight_patches_uuid != self.patches_uuid:
            self.unpatch_model()
            self.model.loads += 1
            self.load(bytes_free)
            self.model.current_weight_patches_uuid = self.patches_uuid
        self.inject_model()

    def load(self, bytes_free: float) -> None:
        for name, module in self.model.named_modules():
            if any(True for child in module.children() for _ in child.parameters()):
                continue  # parameters of a module that has others inside are never patched
            for own in list(module._parameters):
                key = f"{name}.{own}"
                weight = module._parameters[own]
                if weight is None:
                    continue
                size = weight.numel() * 4
                if key in self.patches and own == "weight" and isinstance(module, Linear) and size > bytes_free:
                    module.__dict__["weight_function"] = [LowVramPatch(key, self.patches)]
                    continue
                bytes_free -= size
                if key in self.patches:
                    self._patch(module, own, key)
                else:  # moved to the device: another Parameter
                    module._parameters[own] = nn.Parameter(weight.data, requires_grad=False)

    def _patch(self, module: nn.Module, name: str, key: str) -> None:
        weight = module._parameters[name]
        assert weight is not None
        self.backup.setdefault(key, Backup(weight.data, False))
        copied = weight.data.to(model_management.memory.computes_in, copy=True)
        made = calculate_weight(self.patches[key], copied, key)
        module._parameters[name] = nn.Parameter(made.to(weight.dtype).clone(), requires_grad=False)

    def unpatch_model(self) -> None:
        """Give each weight its original back: in another Parameter."""
        for module in self.model.modules():
            module.__dict__.pop("weight_function", None)
            module.__dict__.pop("weight_lowvram_function", None)
        for key, backup in self.backup.items():
            path, _, name = key.rpartition(".")
            self.model.get_submodule(path)._parameters[name] = nn.Parameter(backup.weight, requires_grad=False)
        self.backup.clear()
        self.model.current_weight_patches_uuid = None


class ModelPatcherDynamic(ModelPatcher):
    """Weights stay where they are; of each a copy goes to the device when a layer needs it, and W′ is made there."""

    def load(self, bytes_free: float) -> None:
        for name, module in self.model.named_modules():
            if isinstance(module, Linear):
                key = f"{name}.weight"
                patch = LowVramPatch(key, self.patches, moves=True) if key in self.patches else None
                module.__dict__["weight_lowvram_function"] = patch
