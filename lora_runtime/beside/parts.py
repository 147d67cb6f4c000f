"""What adds to a module's output: thin products, maps, products for a table, and dense changes.

Shapes are those of a linear layer; of a convolution the channels are the second dimension and pixels follow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from lora_runtime.adapters import Map
from lora_runtime.beside.layers import convolve, is_convolution, is_linear, is_turned, own_bias, run_with
from lora_runtime.beside.numbers import Numbers
from lora_runtime.dialects import Part
from lora_runtime.stage import Run, Stage, Varying

__all__ = ["Dense", "Mapped", "ModuleCall", "Products", "TableProducts"]


@dataclass(eq=False)
class ModuleCall:
    """One call of a module whose output is being added to. `inputs` and `output` have a batch."""

    stage: Stage
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: Tensor  # (rows, …, in)
    output: Tensor  # (rows, …, out)
    channel: int  # the dimension of the channels
    elsewhere: dict[str, Tensor]  # the bias and buffers of a layer that has them at no time but within its call
    product: Tensor | None = None  # W₀x (rows, …, out), where a part needs it

    def again(self, inputs: Tensor) -> Tensor:
        """Return W₀ · other inputs, by the layer itself: forward, so that no hook runs."""
        return self.without_bias(self.module.forward(inputs))

    def without_bias(self, output: Tensor) -> Tensor:
        """Return W₀x of an output of the layer."""
        bias = own_bias(self.module)
        if bias is None:
            return output
        if bias.is_meta or "bias" in self.elsewhere:  # an offloader has it; the layer's output for zeros tells
            if "bias" not in self.elsewhere:
                zeros = self.module.forward(torch.zeros_like(self.inputs[:1]))
                rows = zeros.movedim(self.channel, -1).reshape(-1, zeros.shape[self.channel])
                self.elsewhere["bias"] = rows[0].clone()
            bias = self.elsewhere["bias"]
        return output - self.spread(bias.to(output))

    def spread(self, numbers: Tensor) -> Tensor:
        """Return numbers of channels in a shape that is broadcast over rows and places."""
        return numbers if self.channel == -1 else numbers.view(-1, *(1 for _ in self.output.shape[2:]))

    def anew(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Return the output of the whole call with these parameters in the place of the module's, without hooks."""
        device = self.output.device
        buffers = {name: self.elsewhere.get(name, own) for name, own in self.module._buffers.items()}
        tensors = {**parameters, **{name: own.to(device) for name, own in buffers.items() if own is not None}}
        args = tuple(_to(device, value) for value in self.args)
        kwargs = {name: _to(device, value) for name, value in self.kwargs.items()}
        self.stage.paused = True
        try:
            output: Tensor = run_with(self.module, tensors, args, kwargs)
        finally:
            self.stage.paused = False
        return output

    def weigh(self, extra: Tensor, strength: Varying) -> Tensor:
        """Return what is added, (rows, …), weighed by the place of each pixel or token where it acts in a region."""
        if strength.place is None:
            return extra
        spatial = self.channel == 1
        return extra * self.stage.places(strength.place, tuple(extra.shape[1:]), spatial, extra)


def _to(device: torch.device, value: Any) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


class Adding(Protocol):
    """A part of what acts beside a module."""

    def add(self, call: ModuleCall) -> None:
        """Add to the output of a call."""
        ...

    @property
    def nbytes(self) -> int:
        """The bytes that it holds."""
        ...


@dataclass(eq=False)
class Products:
    """The factors of all low-rank terms on one run of a module's outputs, side by side: y += U(D·x)."""

    outputs: tuple[int, int] | None  # of the module's outputs; None: all
    inputs: int | None  # only the first so many; None: all
    strengths: tuple[Varying, ...]
    bounds: tuple[tuple[int, int], ...]  # of the ranks of each
    factors: Numbers  # up (R, out), as the product wants it; down (R, in), or of a convolution (R, in, k, k)
    constant: bool  # whether all strengths are in the factors

    @property
    def nbytes(self) -> int:
        """The bytes of the factors."""
        return self.factors.nbytes

    def add(self, call: ModuleCall) -> None:
        """Add the terms of each row to it."""
        if self.constant:
            up, down = self.factors.like(call.output)
            self._add(call, up, down, slice(None), ())
            return
        for run in call.stage.runs(self.strengths, call.inputs.shape[0]):
            up, down = self._of(run, *self.factors.like(call.output))
            terms = tuple((self.strengths[i], self.bounds[i][1] - self.bounds[i][0]) for i in run.terms)
            self._add(call, up, down, run.rows, terms)

    def _of(self, run: Run, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
        """Return the factors of the terms of a run."""
        terms = run.terms
        if len(terms) == len(self.bounds):
            return up, down
        if terms[-1] - terms[0] == len(terms) - 1:  # neighbours: views
            ranks = slice(self.bounds[terms[0]][0], self.bounds[terms[-1]][1])
            return up[ranks], down[ranks]
        chosen = [slice(*self.bounds[term]) for term in terms]
        return torch.cat([up[ranks] for ranks in chosen]), torch.cat([down[ranks] for ranks in chosen])

    def _add(
        self, call: ModuleCall, up: Tensor, down: Tensor, rows: slice, terms: tuple[tuple[Varying, int], ...]
    ) -> None:
        """Add Σ s·U(D·x) to some rows; without terms the strengths are in the factors."""
        here, there = call.inputs[rows].to(down.dtype), call.output[rows]
        spatial = call.channel == 1
        if self.inputs is not None:
            here = here.narrow(call.channel, 0, self.inputs)
        if self.outputs is not None:
            start, stop = self.outputs
            there = there.narrow(call.channel, start, stop - start)
        inner = convolve(call.module, here, down) if spatial else functional.linear(here, down)  # (rows, …, R)
        if terms:
            scale = call.stage.scale(terms, down)
            inner.mul_(scale if isinstance(scale, float) else call.spread(scale))
            _confine(call, inner, terms)
        if spatial:
            # (out, R) · (rows, R, pixels)
            there.add_(torch.matmul(up.t(), inner.flatten(2)).view(there.shape))
        elif there.is_contiguous():
            # In one pass over the output: a product and a sum took 1.12 to 1.16 of a bare step, this 1.03 to 1.14.
            there.view(-1, there.shape[-1]).addmm_(inner.reshape(-1, inner.shape[-1]), up)
        else:
            there.add_(inner @ up)


def _confine(call: ModuleCall, inner: Tensor, terms: tuple[tuple[Varying, int], ...]) -> None:
    """Weigh the ranks of terms that act only in a region by the place of each pixel or token."""
    start = 0
    for varying, rank in terms:
        if varying.place is not None:
            ranks = inner.narrow(call.channel, start, rank)
            ranks.mul_(call.stage.places(varying.place, tuple(inner.shape[1:]), call.channel == 1, inner))
        start += rank


@dataclass(eq=False)
class Mapped:
    """One map at one strength."""

    strength: Varying
    form: Map
    part: Part
    outputs: tuple[int, int] | None  # of the module's outputs; None: all
    tensors: Numbers
    by_input: Numbers | None
    by_output: Numbers | None

    @property
    def nbytes(self) -> int:
        """The bytes of its numbers."""
        return sum(numbers.nbytes for numbers in (self.tensors, self.by_input, self.by_output) if numbers is not None)

    def add(self, call: ModuleCall) -> None:
        """Add s·Δx to the rows that are meant."""
        strength = self.strength.at(call.stage.call.moment)
        for run in call.stage.runs((self.strength,), call.inputs.shape[0]):
            extra = call.weigh(self._change(call, run.rows), self.strength)
            self._own(call.output[run.rows], call).add_(extra, alpha=strength)

    def _own(self, values: Tensor, call: ModuleCall) -> Tensor:
        """Return a view of the outputs that are its own."""
        if self.outputs is None:
            return values
        start, stop = self.outputs
        return values.narrow(call.channel, start, stop - start)

    def _change(self, call: ModuleCall, rows: slice) -> Tensor:
        """Return Δx at strength 1, (rows, …, own outputs)."""
        tensors, form, channel = self.tensors.like(call.output), self.form, call.channel
        if form.of == "output":
            assert call.product is not None
            values = self._turned(self._own(call.product[rows], call), channel)
        else:
            values = call.inputs[rows].to(call.output.dtype)
            if self.part.inputs is not None:
                values = values.narrow(channel, 0, self.part.inputs)
        if self.by_input is not None:
            values = values * call.spread(self.by_input.like(call.output)[0])
        if form.of == "pixels":
            change = form.act(values, partial(convolve, call.module), *tensors)
        else:
            # (rows, pixels, channels) for the map
            change = form.act(values.movedim(channel, -1), *tensors).movedim(-1, channel)
        if form.of == "before":
            change = self._turned(self._own(call.again(_widened(change, call)), call), channel)
        elif form.rows is not None:
            start, stop = form.rows
            change = change.narrow(channel, start, stop - start)
        if self.by_output is not None:
            change = change * call.spread(self.by_output.like(call.output)[0])
        return self._turned(change, channel)

    def _turned(self, values: Tensor, channel: int) -> Tensor:
        """Return the outputs with their halves swapped where those of files are: both ways the same."""
        return torch.roll(values, values.shape[channel] // 2, channel) if self.part.swapped else values


def _widened(change: Tensor, call: ModuleCall) -> Tensor:
    """Return a changed input with zeros for the inputs that the adapter knows nothing of."""
    missing = call.inputs.shape[call.channel] - change.shape[call.channel]
    if not missing:
        return change
    zeros = list(change.shape)
    zeros[call.channel] = missing
    return torch.cat([change, change.new_zeros(zeros)], call.channel)


@dataclass(eq=False)
class TableProducts:
    """Two factors of a table at one strength: the rows that a call looks up, (…, rank), by the other factor."""

    strength: Varying
    factors: Numbers  # up (tokens, rank), down (rank, width)

    @property
    def nbytes(self) -> int:
        """The bytes of the factors."""
        return self.factors.nbytes

    def add(self, call: ModuleCall) -> None:
        """Add s·up[tokens]·down to the rows that are meant."""
        runs = call.stage.runs((self.strength,), call.inputs.shape[0])
        if not runs:
            return
        up, down = self.factors.like(call.output)
        extra = (call.anew({"weight": up}) @ down).view(call.output.shape)
        for run in runs:
            weighed = call.weigh(extra[run.rows], self.strength)
            call.output[run.rows].add_(weighed, alpha=self.strength.at(call.stage.call.moment))


@dataclass(eq=False)
class Dense:
    """The deltas of terms without another form at one strength, by parameter, in the shapes of the module's own."""

    strength: Varying
    deltas: dict[str, Numbers]

    @property
    def nbytes(self) -> int:
        """The bytes of the deltas."""
        return sum(delta.nbytes for delta in self.deltas.values())

    def add(self, call: ModuleCall) -> None:
        """Add s·Δ(x) to the rows that are meant."""
        runs = call.stage.runs((self.strength,), call.inputs.shape[0])
        if not runs:
            return
        deltas = {name: delta.like(call.output)[0] for name, delta in self.deltas.items()}
        strength = self.strength.at(call.stage.call.moment)
        alone = is_linear(call.module) or is_convolution(call.module)
        whole = None if alone else self._whole(call, deltas)
        for run in runs:
            extra = _alone(call, deltas, call.inputs[run.rows]) if whole is None else whole[run.rows]
            if self.strength.place is not None:  # a bias alone is one row
                extra = call.weigh(extra.expand(call.output[run.rows].shape), self.strength)
            call.output[run.rows].add_(extra, alpha=strength)

    def _whole(self, call: ModuleCall, deltas: Mapping[str, Tensor]) -> Tensor:
        """Return what the deltas add to the output of a norm, an embedding or a transposed convolution."""
        if isinstance(call.module, nn.Embedding):
            return call.anew(deltas).view(call.output.shape)
        # The output is linear in the parameters, but a norm may have an offset, as Gemma's has 1 + weight. W₀ is in
        # neither of the two: an offloader may have it elsewhere by now.
        own = {name: held for name, held in call.module._parameters.items() if held is not None}
        nothing = {name: call.output.new_zeros(held.shape) for name, held in {**own, **deltas}.items()}
        return (call.anew({**nothing, **deltas}) - call.anew(nothing)).view(call.output.shape)


def _alone(call: ModuleCall, deltas: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    """Return what the deltas add to the output of a linear layer or convolution at strength 1."""
    weight, bias = deltas.get("weight"), deltas.get("bias")
    if weight is None:
        assert bias is not None
        return call.spread(bias)
    inputs = inputs.to(weight.dtype)
    if call.channel == 1:
        return convolve(call.module, inputs, weight, bias)
    return functional.linear(inputs, weight.t() if is_turned(call.module) else weight, bias)
