"""Some rows of another adapter's change: for a file that has in one weight what the model has in several."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lora_runtime.adapters.base import Adapter, Cast
from lora_runtime.adapters.forms import Factors, Form, Map, multiply

__all__ = ["Rows"]


@dataclass(frozen=True, eq=False)
class Rows(Adapter):
    """The rows from `start` to `stop` of what `whole` changes in a weight of shape `made_for`."""

    whole: Adapter
    made_for: torch.Size
    start: int
    stop: int
    keys: tuple[str, ...]
    # Where the change depends on W₀: the original weights that hold its rows, one below the other, these rows among
    # them. One row can depend on all others (a rotation of outputs, a length for each input).
    originals: tuple[Tensor, ...] = ()

    @property
    def algorithm(self) -> str:  # type: ignore[override]
        """Return the algorithm of the whole."""
        return self.whole.algorithm

    @property
    def base_dependent(self) -> bool:  # type: ignore[override]
        """Return whether `originals` are needed."""
        return self.whole.base_dependent

    @property
    def parameter(self) -> str:  # type: ignore[override]
        """Return what of its module it changes."""
        return self.whole.parameter

    @property
    def rank(self) -> int:  # type: ignore[override]
        """Return the rank of the whole."""
        return self.whole.rank

    @property
    def alpha(self) -> float | None:  # type: ignore[override]
        """Return the alpha of the whole."""
        return self.whole.alpha

    @property
    def scale(self) -> float:  # type: ignore[override]
        """Return the scale of the whole."""
        return self.whole.scale

    def given(self, originals: tuple[Tensor, ...]) -> Rows:
        """Return these rows with the originals that hold all rows."""
        return replace(self, originals=originals)

    def misfit(self, shape: torch.Size) -> str | None:
        """Return None for a weight of just these rows."""
        own = (self.stop - self.start, *self.made_for[1:])
        return None if shape == own else f"{own} of a change of {tuple(self.made_for)}, the weight is {tuple(shape)}"

    def factors(self) -> Factors | None:
        """Return the factors of the whole, with these rows of the one on the output side."""
        factors = self.whole.factors()
        return None if factors is None else Factors(factors.up[self.start : self.stop], factors.down, factors.scale)

    def forms(self, shape: torch.Size, cast: Cast, original: Callable[[], Tensor]) -> tuple[Form, ...] | None:
        """Return these rows of the whole's forms; None where an output depends on others that this layer has not."""
        forms = self.whole.forms(self.made_for, cast, self._stacked)
        if forms is None:
            return None
        cut = [self._cut(form) for form in forms]
        return None if None in cut else tuple(form for form in cut if form is not None)

    def _cut(self, form: Form) -> Form | None:
        rows = slice(self.start, self.stop)
        if not isinstance(form, Map):
            return Factors(form.up[rows], form.down, form.scale)
        by_output = None if form.by_output is None else form.by_output[rows]
        if form.of == "before":  # the layer has its own rows of W₀
            return replace(form, by_output=by_output)
        if form.of == "output":
            return (
                replace(form, tensors=(form.tensors[0][rows],), by_output=by_output) if form.act is multiply else None
            )
        return replace(form, rows=(self.start, self.stop), by_output=by_output)

    def _stacked(self) -> Tensor:
        """Return the original weights that hold all rows, one below the other."""
        if not self.originals:
            raise ValueError(f"{self.algorithm} depends on W₀ and was not given the other rows of it")
        return torch.cat([original.to(self.originals[0].device) for original in self.originals])

    def delta(self, weight: Tensor) -> Tensor:
        """Return these rows of Δ, computed on a weight of all rows; ValueError without the originals that it needs."""
        outline = weight.new_zeros(()).expand(self.made_for)  # of which only the shape, dtype and device count
        base = self._stacked().to(weight.device) if self.base_dependent else outline
        return self.whole.delta(base)[self.start : self.stop]
