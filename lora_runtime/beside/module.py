"""What runs after each call of one module, and adds to its output."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from lora_runtime.adapters import Adapter
from lora_runtime.beside.terms import Keeper, LiveTerm
from lora_runtime.dialects import Part
from lora_runtime.merge import delta_of
from lora_runtime.routes import is_linear, layer_shape
from lora_runtime.stage import Run, Stage, Varying

__all__ = ["attach", "dense_bytes", "reason_against", "uncompiled"]

# torch's MultiheadAttention takes the weights of its layers and never calls them.
_NEVER_CALLED = ("MultiheadAttention", "NonDynamicallyQuantizableLinear")
_TURNED_LINEAR = "Conv1D"  # of transformers: a linear layer with a weight (in, out)


def reason_against(module: nn.Module, parameter: str, adapters: Sequence[Adapter] = ()) -> str | None:
    """Return why these adapters of this parameter cannot act beside the module, or None where they can.

    They can where the output is a linear function of the parameter, and the module is called.
    """
    kind = type(module).__name__
    if kind in _NEVER_CALLED:
        return f"the weights of a {kind} are used without calling it"
    if parameter not in ("weight", "bias") or not (_is_product(module) or "Norm" in kind):
        return f"the output of a {kind} is no linear function of its {parameter}"
    return None


def uncompiled(hook: Callable[..., Any], compiled: bool) -> Callable[..., Any]:
    """Return a hook that runs as it is inside of compiled code, which would be made anew for each of its states."""
    return torch.compiler.disable(hook) if compiled else hook  # type: ignore[no-any-return, no-untyped-call, unused-ignore]


def attach(
    module: nn.Module,
    stage: Stage,
    terms: Mapping[str, Sequence[LiveTerm]],
    originals: Keeper,
    *,
    bases: Mapping[str, Callable[[], Tensor]] = MappingProxyType({}),
    compiled: bool = False,
) -> Callable[[], None]:
    """Let these terms act beside a module from now on; return what ends it.

    `terms` and `bases` are by the name of the module's parameter. Factors and deltas are copied once, in the dtype and
    to the device of the weight, and follow the module where it goes.
    """
    beside = _Beside(module, stage, *_prepare(module, terms, originals, bases))
    return module.register_forward_hook(uncompiled(beside, compiled), with_kwargs=True).remove


@dataclass(eq=False)
class _Factors:
    """The factors of all low-rank terms on one run of a module's outputs, side by side."""

    outputs: tuple[int, int] | None  # of the module's outputs; None: all
    inputs: int | None  # only the first so many; None: all
    strengths: tuple[Varying, ...]
    bounds: tuple[tuple[int, int], ...]  # of the ranks of each
    up: Tensor  # (R, out): as the product wants it
    down: Tensor  # (R, in), or of a convolution (R, in, k, k)

    def __post_init__(self) -> None:
        """Keep the factors as they came: a call in half precision must not cost the next one its digits."""
        self._whole = self.up, self.down

    def of(self, terms: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Return the factors of some of the terms."""
        if len(terms) == len(self.bounds):
            return self.up, self.down
        if terms[-1] - terms[0] == len(terms) - 1:  # neighbours: views
            ranks = slice(self.bounds[terms[0]][0], self.bounds[terms[-1]][1])
            return self.up[ranks], self.down[ranks]
        chosen = [slice(*self.bounds[term]) for term in terms]
        return torch.cat([self.up[ranks] for ranks in chosen]), torch.cat([self.down[ranks] for ranks in chosen])

    def follow(self, like: Tensor) -> None:
        """Go where the module computes, and in its dtype."""
        if self.up.device != like.device or self.up.dtype != like.dtype:
            self.up, self.down = (factor.to(like) for factor in self._whole)


@dataclass(eq=False)
class _Dense:
    """The deltas of terms without factors at one strength, by parameter, in the shapes of the module's own."""

    strength: Varying
    deltas: dict[str, Tensor]

    def __post_init__(self) -> None:
        """Keep the deltas as they came, as those of factors."""
        self._whole = dict(self.deltas)

    def follow(self, like: Tensor) -> None:
        """Go where the module computes, and in its dtype."""
        for name, delta in self.deltas.items():
            if delta.device != like.device or delta.dtype != like.dtype:
                self.deltas[name] = self._whole[name].to(like)


def _prepare(
    module: nn.Module,
    terms: Mapping[str, Sequence[LiveTerm]],
    originals: Keeper,
    bases: Mapping[str, Callable[[], Tensor]],
) -> tuple[list[_Factors], list[_Dense]]:
    """Return the factors that can act as two products, and a dense delta for each other strength."""
    products: dict[Part, list[LiveTerm]] = {}
    dense: dict[Varying, dict[str, Tensor]] = {}
    forms = {name: _form(module, name) for name in terms}
    weights: dict[str, Tensor] = {}
    for name, here in terms.items():
        for term in here:
            if name == "weight" and _acts_as_products(module, term.adapter):
                products.setdefault(term.part, []).append(term)
                continue
            weight = forms[name]
            if term.adapter.base_dependent:
                if name not in weights:
                    weights[name] = _original(module, name, originals, bases)
                weight = weights[name]
            deltas = dense.setdefault(term.strength, {})
            delta = delta_of(weight, originals.grounded(term.adapter, term.pieces), term.dyn, term.part)
            deltas[name] = deltas[name] + delta if name in deltas else delta
    return (
        [_join(module, part, group, forms["weight"]) for part, group in products.items()],
        [
            _Dense(strength, {name: delta.to(forms[name].dtype) for name, delta in deltas.items()})
            for strength, deltas in dense.items()
        ],
    )


def _form(module: nn.Module, name: str) -> Tensor:
    """Return a tensor of the shape, dtype and device with which a layer computes its parameter; it has no values."""
    parameter = module._parameters.get(name)
    others = (tensor for tensor in (*module._parameters.values(), *module._buffers.values()) if tensor is not None)
    like = parameter if parameter is not None else next(others, torch.empty(0))
    device, dtype = _computing(like)
    shape = layer_shape(module, name)
    assert shape is not None
    return torch.zeros((), dtype=dtype, device=device).expand(shape)


def _original(module: nn.Module, name: str, originals: Keeper, bases: Mapping[str, Callable[[], Tensor]]) -> Tensor:
    """Return W₀ of a parameter."""
    if name in bases:
        return bases[name]().to(_form(module, name).device)
    parameter = module._parameters[name]
    assert parameter is not None
    return originals.original(parameter)


def _computing(weight: Tensor) -> tuple[torch.device, torch.dtype]:
    """Return where, and in which dtype, a layer with this weight computes, as far as the weight tells.

    One that is quantised, stored in 8 bits or offloaded does not: the first call tells.
    """
    if weight.is_meta or not weight.is_floating_point() or weight.element_size() == 1:
        return torch.device("cpu") if weight.is_meta else weight.device, torch.float32
    return weight.device, weight.dtype


def _acts_as_products(module: nn.Module, adapter: Adapter) -> bool:
    """Return whether U(D·x) can be computed beside this module."""
    if _is_convolution(module):
        grouped = getattr(module, "groups", 1) != 1 or getattr(module, "transposed", False)
        return not grouped and adapter.factors() is not None
    return _is_linear(module) and adapter.factors() is not None


def dense_bytes(module: nn.Module, name: str, adapter: Adapter) -> int:
    """Return the bytes of the dense Δ that an adapter needs to act beside a module; 0 where factors do."""
    if name == "weight" and _acts_as_products(module, adapter):
        return 0
    form = _form(module, name)
    return form.numel() * form.element_size()


def _join(module: nn.Module, part: Part, terms: Sequence[LiveTerm], weight: Tensor) -> _Factors:
    """Put the factors of terms on one part of a weight side by side."""
    ups, downs, bounds, rank = [], [], [], 0
    device, dtype = _computing(weight)
    rows = weight.shape[0]
    for term in terms:
        factors = term.adapter.factors()
        assert factors is not None
        up, down = factors.up[:, : term.dyn], factors.down[: term.dyn]
        ups.append(up.to(device, torch.float32).t() * factors.scale)
        downs.append(down.to(device, torch.float32))
        bounds.append((rank, rank + down.shape[0]))
        rank += down.shape[0]
    up, down = torch.cat(ups).to(dtype), torch.cat(downs).to(dtype)
    if part.swapped:
        up = torch.roll(up, up.shape[1] // 2, 1)
    if _is_convolution(module):
        down = down.reshape(rank, -1, *weight.shape[2:])
    start = part.index * (rows // part.count)
    outputs = None if part.count == 1 else (start, start + up.shape[1])
    return _Factors(outputs, part.inputs, tuple(term.strength for term in terms), tuple(bounds), up, down)


class _Beside:
    """What runs after each call of one module, and adds to its output."""

    def __init__(self, module: nn.Module, stage: Stage, factors: list[_Factors], dense: list[_Dense]) -> None:
        self.stage = stage
        self.factors = factors
        self.dense = dense
        self.spatial = _is_convolution(module) or isinstance(module, nn.GroupNorm)
        # How many dimensions a batch has at least; an input with fewer is a batch of one.
        self.least = cast("Tensor", module.weight).ndim if _is_convolution(module) else 2 if _is_linear(module) else 1

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        if self.stage.paused:
            return output
        inputs: Tensor = args[0] if args else next(iter(kwargs.values()))
        again = _Again(self.stage, module, args, kwargs, output)
        # Nobody else has the output yet, so it may be written; autograd, and a second run of the module, need it.
        if self.dense or (torch.is_grad_enabled() and output.requires_grad):
            output = output.clone()
        changed = output
        if inputs.ndim < self.least:
            inputs, output = inputs[None], output[None]
        for factors in self.factors:
            runs = self.stage.runs(factors.strengths, inputs.shape[0])
            if runs:
                factors.follow(output)
            for run in runs:
                self._add_products(module, factors, run, inputs, output)
        for dense in self.dense:
            runs = self.stage.runs((dense.strength,), inputs.shape[0])
            if runs:
                dense.follow(output)
                self._add_dense(module, dense, runs, inputs, again, output)
        return changed

    def _add_products(self, module: nn.Module, factors: _Factors, run: Run, inputs: Tensor, output: Tensor) -> None:
        """Add Σ s·U(D·x) of the terms of one run to its rows of the output."""
        terms = tuple((factors.strengths[i], factors.bounds[i][1] - factors.bounds[i][0]) for i in run.terms)
        up, down = factors.of(run.terms)
        here, there = inputs[run.rows].to(down.dtype), output[run.rows]
        channel = 1 if self.spatial else -1
        if factors.inputs is not None:
            here = here.narrow(channel, 0, factors.inputs)
        if factors.outputs is not None:
            start, stop = factors.outputs
            there = there.narrow(channel, start, stop - start)
        scale = self.stage.scale(terms, down)
        if self.spatial:
            inner: Tensor = module._conv_forward(here, down, None)  # type: ignore[operator]  # torch's convolutions
            inner.mul_(scale if isinstance(scale, float) else scale.view(-1, *(1 for _ in inner.shape[2:])))
        else:
            inner = functional.linear(here, down).mul_(scale)
        self._confine(inner, terms)
        if self.spatial:
            # (out, R) · (rows, R, pixels)
            there.add_(torch.matmul(up.t(), inner.flatten(2)).view(there.shape))
        elif there.is_contiguous():
            # In one pass over the output: a product and a sum took 1.12 to 1.16 of a bare step, this 1.03 to 1.14.
            there.view(-1, there.shape[-1]).addmm_(inner.view(-1, inner.shape[-1]), up)
        else:
            there.add_(inner @ up)

    def _confine(self, inner: Tensor, terms: tuple[tuple[Varying, int], ...]) -> None:
        """Weigh the ranks of terms that act only in a region by the place of each pixel or token."""
        start = 0
        for varying, rank in terms:
            if varying.place is not None:
                ranks = inner.narrow(1 if self.spatial else -1, start, rank)
                ranks.mul_(self.stage.places(varying.place, tuple(inner.shape[1:]), self.spatial, inner))
            start += rank

    def _add_dense(
        self, module: nn.Module, dense: _Dense, runs: Sequence[Run], inputs: Tensor, again: _Again, output: Tensor
    ) -> None:
        """Add s·Δ(x) to the rows of the output that are meant."""
        strength = dense.strength.at(self.stage.call.moment)
        whole = None if _is_linear(module) or _is_convolution(module) else again.run(dense.deltas)
        for run in runs:
            extra = self._alone(module, dense.deltas, inputs[run.rows]) if whole is None else whole[run.rows]
            if dense.strength.place is not None:
                places = self.stage.places(dense.strength.place, tuple(output.shape[1:]), self.spatial, extra)
                extra = extra * places
            output[run.rows].add_(extra, alpha=strength)

    def _alone(self, module: nn.Module, deltas: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Return what the deltas add to the output of a linear layer or convolution at strength 1."""
        weight, bias = deltas.get("weight"), deltas.get("bias")
        if weight is None:
            assert bias is not None
            return bias.view(-1, *(1 for _ in inputs.shape[2:])) if self.spatial else bias
        inputs = inputs.to(weight.dtype)
        if self.spatial:
            return cast("Tensor", module._conv_forward(inputs, weight, bias))  # type: ignore[operator]
        return functional.linear(inputs, weight.t() if _is_turned(module) else weight, bias)


class _Again(NamedTuple):
    """One call of a norm or an embedding, to be done anew with other parameters; it may have more than one input."""

    stage: Stage
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    before: Tensor

    def run(self, deltas: Mapping[str, Tensor]) -> Tensor:
        """Return what the deltas add to the output at strength 1."""
        # The output is linear in the parameters, but a norm may have an offset, as Gemma's has 1 + weight.
        norm = not isinstance(self.module, nn.Embedding)
        own = self.module._parameters
        changed = {name: cast("Tensor", own[name]) + delta if norm else delta for name, delta in deltas.items()}
        self.stage.paused = True
        try:
            output: Tensor = torch.func.functional_call(self.module, changed, self.args, self.kwargs)
        finally:
            self.stage.paused = False
        return output - self.before if norm else output


def _is_convolution(module: nn.Module) -> bool:
    return isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))


def _is_turned(module: nn.Module) -> bool:
    return type(module).__name__ == _TURNED_LINEAR


def _is_linear(module: nn.Module) -> bool:
    return is_linear(module) or _is_turned(module)


def _is_product(module: nn.Module) -> bool:
    return _is_linear(module) or _is_convolution(module) or isinstance(module, nn.Embedding)
