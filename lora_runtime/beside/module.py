"""What runs after each call of one module, and adds to its output."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from lora_runtime.beside.compiled import compiling, handle_of, make_anew, may_be_compiled, operators, run_as_operator
from lora_runtime.beside.layers import is_convolution, is_linear
from lora_runtime.beside.parts import Adding, Dense, Mapped, ModuleCall
from lora_runtime.beside.prepare import prepare
from lora_runtime.beside.terms import Base, Keeper, LiveTerm
from lora_runtime.hooks import Endings, end_all, hook_after
from lora_runtime.routes import kept_buffers
from lora_runtime.stage import Stage

__all__ = ["Attached", "make_attached"]

_NO_BASES: Mapping[str, Base] = MappingProxyType({})


def make_attached(
    module: nn.Module,
    stage: Stage,
    terms: Mapping[str, Sequence[LiveTerm]],
    keeper: Keeper,
    *,
    bases: Mapping[str, Base] = _NO_BASES,
    unmerged: frozenset[str] = frozenset(),
    compiled: bool = False,
) -> Attached:
    """Return what lets these terms act beside a module, from its `begin` to its `detach`.

    `terms` are by the name of the module's parameter; `bases` and `unmerged` as in a LiveModule; `compiled`: whether
    there may be compiled code that runs the module. Factors and deltas are copied once, in the dtype and to the device
    of the weight, and follow the module where it goes.
    """
    with torch.inference_mode(False), torch.no_grad():
        parts = prepare(module, terms, keeper, bases, unmerged)
        # What an offloader gives and takes away again is gone when a hook runs after the call.
        elsewhere = {"bias": bases["bias"]()} if "bias" in bases and parts else {}
        if not is_linear(module) and not is_convolution(module):  # these are never run with other parameters
            elsewhere.update(kept_buffers(module))
    return Attached(module, stage, parts, elsewhere, compiled=compiled)


class Attached:
    """What acts beside one module: the hook that runs after each of its calls."""

    def __init__(
        self,
        module: nn.Module,
        stage: Stage,
        parts: Sequence[Adding],
        elsewhere: dict[str, Tensor],
        *,
        compiled: bool = False,
    ) -> None:
        self._module = weakref.ref(module)
        self._stage = stage
        self._parts = parts
        self._elsewhere = elsewhere
        self._needs_product = any(isinstance(part, Mapped) and part.form.of == "output" for part in parts)
        kernel = getattr(module, "kernel_size", None)
        pixels = is_convolution(module) or isinstance(kernel, tuple)
        self._channel = 1 if pixels or isinstance(module, nn.GroupNorm) else -1
        # How many dimensions a batch has at least; an input with fewer is a batch of one.
        self._least = len(kernel) + 2 if isinstance(kernel, tuple) else 2 if is_linear(module) else 1
        operators()
        self._handle = handle_of(self)
        self._compiled = compiled
        self._endings: Endings = []
        self.acts = False
        """Whether it acts now."""

    def begin(self) -> Attached:
        """Act from now on."""
        try:
            # What others do to the output they do to that of the changed weight, as where it is merged.
            hook_after(self.module, self, self._endings, first=True)
            if self._compiled or may_be_compiled():
                make_anew(self.module, self._endings)
        except BaseException:
            self.detach()
            raise
        self.acts = True
        return self

    @property
    def module(self) -> nn.Module:
        """The module; ReferenceError where it is gone."""
        module = self._module()
        if module is None:
            raise ReferenceError("the module that this acts beside is gone")
        return module

    def beside(self, module: nn.Module) -> bool:
        """Return whether it acts beside this very module, and no other that has its id by now."""
        return self._module() is module

    @property
    def serial(self) -> int:
        """The number of the call that the model is in: other strengths have another."""
        return self._stage.serial

    @property
    def dense_bytes(self) -> int:
        """The bytes of the changes that have no cheaper form than a weight."""
        return sum(part.nbytes for part in self._parts if isinstance(part, Dense))

    @property
    def nbytes(self) -> int:
        """The bytes of all that acts."""
        return sum(part.nbytes for part in self._parts)

    @property
    def device(self) -> torch.device:
        """Where the module is."""
        own = next((parameter for parameter in self.module._parameters.values() if parameter is not None), None)
        return torch.device("cpu") if own is None else own.device

    def detach(self) -> None:
        """Act no more."""
        self.acts = False
        end_all(self._endings)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        """Return the output with what acts beside the module."""
        if compiling():
            return run_as_operator(self._handle, args, kwargs, output)
        if self._stage.paused:
            return output
        # Nobody else has the output yet, so it may be written, but where autograd needs it.
        return self.act(module, args, kwargs, output, fresh=not (torch.is_grad_enabled() and output.requires_grad))

    def act(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor, *, fresh: bool = True
    ) -> Tensor:
        """Return the output with what acts beside the module; where it is `fresh`, it is written."""
        inputs: Tensor = args[0] if args else next(iter(kwargs.values()))
        inputs = inputs.to(output.device)  # an offloader takes them there within the call
        if not fresh:
            output = output.clone()
        changed = output
        if inputs.ndim < self._least:
            inputs, output = inputs[None], output[None]
        call = ModuleCall(self._stage, module, args, dict(kwargs), inputs, output, self._channel, self._elsewhere)
        if self._needs_product:
            call.product = call.without_bias(output.clone())
        for part in self._parts:
            part.add(call)
        return changed
