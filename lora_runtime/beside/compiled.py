"""What acts beside a module inside of code that torch.compile makes.

Compiled code sees one operator, `lora_runtime::beside`, with the number of what acts, the module's inputs and its
output. What acts, at which strengths, on which rows, is looked up when it runs: no step and no change of a strength
compiles anything anew, nothing breaks the graph, and all blocks of a kind share their code.

Code that was made before a hook was there goes on without it, because torch does not look at hooks again. It does look
whether a module has a `forward` of its own, so a touched module gets its own method under that name for the time
being: only what runs this module is compiled anew, once, and with the method gone the first code is found again.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from itertools import chain, count
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.torch_version import TorchVersion

from lora_runtime.errors import ModelError
from lora_runtime.hooks import Endings

__all__ = [
    "compiling",
    "handle_of",
    "make_anew",
    "make_room",
    "may_be_compiled",
    "operators",
    "run_as_operator",
    "uncompiled",
]

_SELECTIVE = (
    TorchVersion(torch.__version__) >= "2.5"
)  # before, code was made for one module and did not look at it again


class Acts(Protocol):
    """What acts beside a module."""

    @property
    def module(self) -> nn.Module:
        """The module."""
        ...

    @property
    def serial(self) -> int:
        """A number above 0 that is another one where the strengths are others."""
        ...

    def act(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> Tensor:
        """Return the output with what acts beside the module; it may be written."""
        ...


def _own_space() -> str:
    """Return the namespace of this module's operator, which is another one where the library is imported anew.

    The WebUI does so at each Reload UI. torch keeps an operator for the process, and the code from before may run yet.
    """
    names = chain(["lora_runtime"], (f"lora_runtime_{number}" for number in count(2)))
    name = next(name for name in names if "taken" not in vars(getattr(torch.ops, name)))
    vars(getattr(torch.ops, name))["taken"] = True
    return name


_SPACE = _own_space()
_numbers = count(1)
_acting: weakref.WeakValueDictionary[int, Acts] = weakref.WeakValueDictionary()


def handle_of(acts: Acts) -> Tensor:
    """Return a tensor that tells compiled code what acts: a number in Python would be a constant of its code."""
    number = next(_numbers)
    _acting[number] = acts
    return torch.tensor(number)


def compiling() -> bool:
    """Return whether torch.compile follows the caller now."""
    return _is_compiling()


# torch 2.1 and 2.2 have it under another name.
_is_compiling: Callable[[], bool] = getattr(torch.compiler, "is_compiling", None) or torch._utils.is_compiling


def uncompiled(hook: Callable[..., Any], compiled: bool) -> Callable[..., Any]:
    """Return a hook of a whole model that runs outside of compiled code, which would be made anew for each state of it.

    torch runs the hooks of the module that was compiled before its code; those of modules inside are part of it.
    """
    return torch.compiler.disable(hook) if compiled else hook  # type: ignore[no-any-return, no-untyped-call, unused-ignore]


def run_as_operator(handle: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> Tensor:
    """Return the output with what acts beside the module, as one operator of compiled code."""
    values = [value for value in args if value is not None]
    names = [name for name, value in kwargs.items() if value is not None]
    values += [kwargs[name] for name in names]
    made: Tensor = getattr(torch.ops, _SPACE).beside(handle, values, ",".join(names), output)[0]
    return made


def may_be_compiled() -> bool:
    """Return whether anything in this process may have been compiled: a function may run a model that is not itself."""
    return "torch._dynamo" in sys.modules


def make_anew(module: nn.Module, endings: Endings) -> None:
    """Have compiled code that runs this module made anew; the ending leads back to the code from before."""
    if not _SELECTIVE:
        endings.append(torch.compiler.reset)
        torch.compiler.reset()
        return
    own = vars(module).get("forward")  # offloading has put its own there
    forward = module.forward if own is None else partial(own)
    # Weak, both: what ends it must not keep the module, which a bound method does.
    reference, mark = weakref.ref(module), weakref.ref(forward)

    def undo() -> None:
        owner, marked = reference(), mark()
        if owner is None or marked is None or vars(owner).get("forward") is not marked:
            return  # somebody has wrapped or replaced it since, and theirs stays
        if isinstance(marked, partial):
            owner.forward = marked.func
        else:
            del owner.forward

    endings.append(undo)
    module.forward = forward


_touched: set[frozenset[int]] = set()  # the sets of modules, by id, that code may have been made for


def make_room(modules: frozenset[int]) -> None:
    """Let torch forget all compiled code before it has more of it for one function than it keeps.

    It has one for each set of touched modules. Beyond its limit it runs the model uncompiled, or raises where the model
    was compiled as one graph. The other half of the limit is for other sizes of pictures and batches.
    """
    config: Any = sys.modules["torch._dynamo"].config
    limit = int(getattr(config, "recompile_limit", 0) or getattr(config, "cache_size_limit", 8))
    if modules not in _touched and len(_touched) >= max(1, limit // 2):
        torch.compiler.reset()
        _touched.clear()
    _touched.add(modules)


# ---- the operator ---------------------------------------------------------------------------------------------------

_GIVEN = "Tensor handle, Tensor[] values, str names, Tensor output"


@lru_cache(maxsize=1)
def operators() -> Any:
    """Tell torch of the operator, once; return what keeps it."""
    library: Any = cast("Any", torch.library.Library)(_SPACE, "FRAGMENT")
    # Strengths are read in Python: a CUDA graph would go on with those of the step in which it was recorded.
    unsafe = getattr(torch._C.Tag, "cudagraph_unsafe", None)
    tags = {} if unsafe is None else {"tags": (unsafe,)}
    library.define(f"beside({_GIVEN}) -> (Tensor, Tensor)", **tags)
    library.define(f"beside_backward({_GIVEN}, Tensor grad, Tensor serial) -> Tensor[]", **tags)
    library.impl("beside", _beside, "CompositeExplicitAutograd")
    library.impl("beside_backward", _beside_backward, "CompositeExplicitAutograd")
    library.impl("beside", _differentiable, "Autograd")
    # Under a name that newer versions have, tensors without data may be on different devices, as the handle is.
    without_data = getattr(torch.library, "register_fake", None) or getattr(torch.library, "impl_abstract", None)
    for name, outline in (("beside", _outline), ("beside_backward", _outlines)):
        if without_data is None:
            library.impl(name, outline, "Meta")
        else:
            without_data(f"{_SPACE}::{name}", outline)
    return library


def _outline(handle: Tensor, values: list[Tensor], names: str, output: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(output), torch.empty_like(handle)


def _outlines(
    handle: Tensor, values: list[Tensor], names: str, output: Tensor, grad: Tensor, serial: Tensor
) -> list[Tensor]:
    return [torch.empty_like(value) for value in (*values, output)]


def _beside(handle: Tensor, values: list[Tensor], names: str, output: Tensor) -> tuple[Tensor, Tensor]:
    """Return the output with what acts beside the module, and the serial number of the call, 0 where nothing acts."""
    acts = _acting.get(int(handle))
    if acts is None:  # compiled code outlives what it was made for: its hook is gone
        return output.clone(), torch.zeros_like(handle)
    return _acted(acts, values, names, output.clone()), torch.full_like(handle, acts.serial)


def _acted(acts: Acts, values: Sequence[Tensor], names: str, output: Tensor) -> Tensor:
    named = names.split(",") if names else []
    first = len(values) - len(named)
    return acts.act(acts.module, tuple(values[:first]), dict(zip(named, values[first:], strict=True)), output)


def _beside_backward(
    handle: Tensor, values: list[Tensor], names: str, output: Tensor, grad: Tensor, serial: Tensor
) -> list[Tensor]:
    """Return the gradients of the values and of the output, 0 for those that are no floating-point numbers.

    Raises ModelError where the strengths are no longer those of the forward pass, which is run once more for this.
    """
    if int(serial) == 0:
        return [*(torch.zeros_like(value) for value in values), grad.clone()]
    acts = _acting.get(int(handle))
    if acts is None or acts.serial != int(serial):
        raise ModelError(
            "the strengths beside this compiled module have changed between its forward and its backward pass: call "
            "backward() before the model is called at another step, and before what is applied ends"
        )
    with torch.enable_grad():
        given = [v.detach().requires_grad_(v.is_floating_point()) for v in (*values, output)]
        *inputs, before = given
        made = _acted(acts, inputs, names, before.clone())
        asked = [value for value in given if value.requires_grad]
        found = iter(torch.autograd.grad(made, asked, grad, allow_unused=True))
    grads = [next(found) if value.requires_grad else None for value in given]
    return [torch.zeros_like(v) if g is None else g for v, g in zip(given, grads, strict=True)]


class _Differentiable(torch.autograd.Function):
    """The operator for autograd."""

    @staticmethod
    def forward(ctx: Any, handle: Tensor, names: str, output: Tensor, *values: Tensor) -> tuple[Tensor, Tensor]:
        ctx.names = names
        with torch._C._AutoDispatchBelowAutograd():
            made, serial = getattr(torch.ops, _SPACE).beside(handle, list(values), names, output)
        ctx.save_for_backward(handle, output, serial, *values)
        ctx.mark_non_differentiable(serial)
        return made, serial

    @staticmethod
    def backward(ctx: Any, grad: Tensor, of_serial: Any) -> Any:  # type: ignore[override, unused-ignore]
        handle, output, serial, *values = ctx.saved_tensors
        given = handle, values, ctx.names, output, grad.contiguous(), serial
        *grads, of_output = getattr(torch.ops, _SPACE).beside_backward(*given)
        return (
            None,
            None,
            of_output,
            *(g if v.is_floating_point() else None for g, v in zip(grads, values, strict=True)),
        )


def _differentiable(handle: Tensor, values: list[Tensor], names: str, output: Tensor) -> tuple[Tensor, Tensor]:
    made: tuple[Tensor, Tensor] = _Differentiable.apply(handle, names, output, *values)  # type: ignore[no-untyped-call]
    return made
