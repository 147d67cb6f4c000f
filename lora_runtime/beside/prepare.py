"""From terms to the parts that act beside a module, each in the cheapest form that its adapter has."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from lora_runtime.adapters import Adapter, Factors, Form, Map, no_autocast
from lora_runtime.beside.layers import is_convolution, is_linear, is_table, part_shape
from lora_runtime.beside.numbers import Numbers, computing
from lora_runtime.beside.parts import Adding, Dense, Mapped, Products, TableProducts
from lora_runtime.beside.terms import Base, Keeper, LiveTerm
from lora_runtime.dialects import WHOLE, Part
from lora_runtime.merge import Piece, delta_of, rows_of
from lora_runtime.precision import full_precision
from lora_runtime.routes import layer_shape
from lora_runtime.stage import Varying

__all__ = ["dense_bytes", "prepare"]


def prepare(
    module: nn.Module,
    terms: Mapping[str, Sequence[LiveTerm]],
    keeper: Keeper,
    bases: Mapping[str, Base],
    unmerged: frozenset[str],
    device: torch.device | None = None,
) -> list[Adding]:
    """Return what acts beside the module: factors that were joined, maps, and a dense delta for each other strength.

    `device`: where it is computed; None: where the module is. The meta device tells what memory it takes.
    """
    thin: dict[Part, list[_Thin]] = {}
    parts: list[Adding] = []
    dense: dict[Varying, dict[str, Tensor]] = {}
    sources = {name: _Source(module, name, keeper, bases.get(name), device) for name in terms}
    for name, source in sources.items():
        # A form is made once, in float32, as what is merged is; each call then computes as the host's own layers do.
        with no_autocast(source.device), full_precision():
            for term in terms[name]:
                if term.strength == Varying(0.0):
                    continue
                adapter = keeper.grounded(term.adapter, term.pieces)
                forms = _forms(source, adapter, term, name in unmerged)
                for form in forms or ():
                    if not isinstance(form, Factors):
                        parts.append(_mapped(source, form, term))
                    elif is_table(module):
                        parts.append(_of_table(source, form, term))
                    else:
                        thin.setdefault(term.part, []).append((form, term.strength))
                if forms is None:
                    deltas = dense.setdefault(term.strength, {})
                    weight = source.weight if adapter.base_dependent else source.outline
                    delta = delta_of(weight, adapter, term.dyn, term.part)
                    deltas[name] = deltas[name] + delta if name in deltas else delta
    joined: list[Adding] = [_join(sources["weight"], part, group) for part, group in thin.items()]
    for strength, deltas in dense.items():
        numbers = {name: Numbers((delta,), sources[name].dtype) for name, delta in deltas.items()}
        joined.append(Dense(strength, numbers))
    return joined + parts


_dense: weakref.WeakKeyDictionary[Adapter, dict[object, bool]] = weakref.WeakKeyDictionary()


def dense_bytes(module: nn.Module, name: str, adapter: Adapter, part: Part = WHOLE) -> int:
    """Return the bytes of the dense Δ that an adapter needs to act beside a module with nothing merged; 0 without one.

    `part`: what of the weight it changes; the Δ is as large as the weight all the same. It computes nothing, and
    remembers what it found for the shape.
    """
    shape = layer_shape(module, name)
    if shape is None or (name == "weight" and adapter.factors() is not None):
        return 0
    known, key = _dense.setdefault(adapter, {}), (type(module), shape, part)
    if key not in known:
        base, meta = partial(torch.empty, shape, device="meta"), torch.device("meta")
        outline = _Source(module, name, _NoKeeper(), base, meta)
        known[key] = _forms(outline, adapter, LiveTerm(adapter, Varying(1.0), part=part), unmerged=True) is None
    if not known[key]:
        return 0
    parameter = module._parameters.get(name)
    dtype = None if parameter is None else computing(parameter)[1]
    return shape.numel() * (2 if dtype is None else torch.empty(0, dtype=dtype).element_size())


class _NoKeeper:
    """Who is never asked for originals."""

    def original(self, parameter: nn.Parameter) -> Tensor:
        raise AssertionError("an outline has no original")

    def grounded(self, adapter: Adapter, pieces: Sequence[Piece]) -> Adapter:
        raise AssertionError("an outline has no originals")


_Thin = tuple[Factors, Varying]


@dataclass(eq=False)
class _Source:
    """One parameter of a module, and its W₀, which is asked for at most once."""

    module: nn.Module
    name: str
    keeper: Keeper
    base: Base | None
    on: torch.device | None = None  # where to compute; None: where the module is

    def __post_init__(self) -> None:
        module = self.module
        shape = layer_shape(module, self.name)
        assert shape is not None, f"a {type(module).__name__} has no {self.name}"
        self.shape: torch.Size = shape
        self.parameter = module._parameters.get(self.name)
        others = (tensor for tensor in (*module._parameters.values(), *module._buffers.values()) if tensor is not None)
        known = next(others, torch.empty(0)) if self.parameter is None else self.parameter
        device, self.dtype = computing(known)
        self.device = self.on or device
        self.sum_dtype = torch.float64 if self.dtype == torch.float64 else torch.float32

    @cached_property
    def weight(self) -> Tensor:
        """W₀ in the layer's shape."""
        if self.base is not None:
            return self.base().to(self.device)
        assert self.parameter is not None
        return self.keeper.original(self.parameter)

    @cached_property
    def outline(self) -> Tensor:
        """A tensor of the weight's shape for deltas that do not depend on W₀."""
        return torch.zeros((), dtype=self.sum_dtype, device=self.device).expand(self.shape)

    def cast(self, tensor: Tensor) -> Tensor:
        """Return a tensor where, and as precisely as, forms are computed."""
        return tensor.to(self.device, self.sum_dtype)


def _forms(source: _Source, adapter: Adapter, term: LiveTerm, unmerged: bool) -> tuple[Form, ...] | None:
    """Return the adapter's forms for this parameter, or None where only a dense Δ can act."""
    module = source.module
    layer = is_linear(module) or (is_convolution(module) and getattr(module, "groups", 1) == 1)
    if source.name != "weight" or not (layer or (is_table(module) and term.part == WHOLE)):
        return None
    if adapter.base_dependent and not unmerged:
        return None  # what the layer gives is not W₀x
    shape = part_shape(source.shape, term.part)
    forms = adapter.forms(shape, source.cast, lambda: rows_of(source.weight, term.part))
    if forms is None or not all(_can_act(form, module, term.part) for form in forms):
        return None
    if term.dyn is None or adapter.factors() is None:
        return forms
    (only,) = forms
    assert isinstance(only, Factors)
    return (Factors(only.up[:, : term.dyn], only.down[: term.dyn], only.scale),)


def _can_act(form: Form, module: nn.Module, part: Part) -> bool:
    """Return whether a form can act beside a module, for a part of its weight."""
    if isinstance(form, Factors):
        return True
    if is_table(module):
        return False
    if form.of == "output":
        return part.inputs is None  # else what the layer gives is that of other inputs too
    return form.of == "before" or (form.of == "pixels") == is_convolution(module)


def _outputs(source: _Source, part: Part) -> tuple[int, int] | None:
    """Return which of the module's outputs a part has; None: all."""
    if part.count == 1:
        return None
    rows = source.shape[0] // part.count
    return part.index * rows, (part.index + part.span) * rows


def _mapped(source: _Source, form: Map, term: LiveTerm) -> Mapped:
    def numbers(tensor: Tensor | None) -> Numbers | None:
        return None if tensor is None else Numbers((source.cast(tensor),), source.dtype)

    return Mapped(
        term.strength,
        form,
        term.part,
        _outputs(source, term.part),
        Numbers(tuple(source.cast(tensor) for tensor in form.tensors), source.dtype),
        numbers(form.by_input),
        numbers(form.by_output),
    )


def _of_table(source: _Source, form: Factors, term: LiveTerm) -> TableProducts:
    factors = source.cast(form.up), source.cast(form.down) * form.scale
    return TableProducts(term.strength, Numbers(factors, source.dtype))


def _join(source: _Source, part: Part, terms: Sequence[_Thin]) -> Products:
    """Put the factors of terms on one part of a weight side by side; a strength that is constant goes into them."""
    ups, downs, bounds, strengths, rank = [], [], [], [], 0
    for factors, strength in terms:
        scale = factors.scale
        if strength == Varying(strength.constant):
            scale, strength = scale * strength.constant, Varying(1.0)
        ups.append(source.cast(factors.up).t() * scale)
        downs.append(source.cast(factors.down))
        strengths.append(strength)
        bounds.append((rank, rank + factors.down.shape[0]))
        rank += factors.down.shape[0]
    up, down = torch.cat(ups), torch.cat(downs)
    if part.swapped:
        up = torch.roll(up, up.shape[1] // 2, 1)
    if is_convolution(source.module):
        down = down.reshape(rank, -1, *source.shape[2:])
    constant = all(strength == Varying(1.0) for strength in strengths)
    numbers = Numbers((up, down), source.dtype)
    return Products(_outputs(source, part), part.inputs, tuple(strengths), tuple(bounds), numbers, constant)
