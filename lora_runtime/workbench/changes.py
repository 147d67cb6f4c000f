"""What a file changes in each module: a product of two factors where its adapters have some, else a dense ΔW.

Both are float64, and at strength 1. A change that depends on W₀ (DoRA, OFT, IA³ …) is asked of the base model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lora_runtime.adapters import Adapter, Factors, LowRank
from lora_runtime.errors import LoraFileError
from lora_runtime.lora import Lora
from lora_runtime.workbench.base_model import Model
from lora_runtime.workbench.low_rank import Product, concatenated

__all__ = ["Change", "changes_of", "kernel"]


@dataclass(frozen=True, eq=False)
class Change:
    """What a file changes in one parameter of one module: the sum of these adapters."""

    lora: Lora
    stem: str  # the file's name for the module
    parameter: str  # "weight" or "bias"
    adapters: tuple[Adapter, ...]
    model: Model | None = None

    @property
    def is_plain(self) -> bool:
        """Whether each adapter is a product of two factors as it is stored."""
        return self.parameter == "weight" and all(isinstance(adapter, LowRank) for adapter in self.adapters)

    @property
    def algorithms(self) -> str:
        """The names of the algorithms, for a reason."""
        return ", ".join(dict.fromkeys(adapter.algorithm for adapter in self.adapters))

    def shape(self) -> torch.Size:
        """Return the shape of the parameter: the model's, else what the tensors tell; LoraFileError where neither."""
        weight = None if self.model is None else self.model.shape(self.stem, self.parameter)
        if weight is not None:
            for adapter in self.adapters:
                if (reason := adapter.misfit(weight)) is not None:
                    raise LoraFileError(f"{self.lora.path}: {self.stem} does not fit {self.model}: {reason}")
            return weight
        shapes = (adapter.weight_shape for adapter in self.adapters)
        own = next((shape for shape in shapes if shape is not None), None)
        if own is None:
            raise self._needs_model("tells neither the size of what it changes nor")
        return torch.Size(own)

    def misplaced(self) -> str | None:
        """Return why the model has nothing that this could change, where it has the module; else None."""
        if self.model is None or self.model.place(self.stem) is None:
            return None
        has = self.model.shape(self.stem, self.parameter) is not None
        return None if has else f"for a {self.parameter} that this module does not have"

    def has_place(self) -> bool:
        """Return whether the model has a parameter that this could change, as far as one is given."""
        if self.model is None:
            return True
        shape = None if self.model.place(self.stem) is None else self.model.shape(self.stem, self.parameter)
        return shape is not None and all(adapter.misfit(shape) is None for adapter in self.adapters)

    def terms(self, dyn: int | None = None) -> list[tuple[float, Product]] | None:
        """Return scales and factors (out, r) and (r, in·k…) whose sum the change is, or None where it takes W₀.

        `dyn`: of factors that the file has, only the first so many ranks.
        """
        found = []
        for adapter in self.adapters:
            factors, own = self._factors(adapter)
            if factors is None:
                return None
            cut = dyn if own else None
            found += [(f.scale, Product(f.up[:, :cut].double(), f.down[:cut].double())) for f in factors]
        return found

    def product(self) -> Product | None:
        """Return the change as one product, or None where it takes W₀."""
        terms = self.terms()
        return None if terms is None else concatenated(terms)

    def dense(self) -> Tensor:
        """Return the change in the parameter's shape; LoraFileError where it takes a model that is not given."""
        if any(adapter.base_dependent or adapter.needs_weight for adapter in self.adapters):
            weight = None if self.model is None else self.model.read(self.stem, self.parameter)
            if weight is None:
                raise self._needs_model("does not tell it:")
            self.shape()
            weight = weight.double()
        else:
            weight = torch.zeros(self.shape(), dtype=torch.float64)
        return sum((self._given(adapter).delta(weight) for adapter in self.adapters), torch.zeros_like(weight))

    def _factors(self, adapter: Adapter) -> tuple[Sequence[Factors] | None, bool]:
        """Return the factors of an adapter, if there are any, and whether the file has them as they are."""
        if self.parameter != "weight" or adapter.base_dependent:
            return None, False
        if isinstance(adapter, LowRank) and adapter.mid is not None:
            adapter = replace(adapter, mid=adapter.mid.double())
        factors = adapter.factors()
        if factors is not None:
            return [factors], True
        forms = adapter.forms(self.shape(), Tensor.double, self._no_original)
        found = [form for form in forms or () if isinstance(form, Factors)]
        return (found if found and len(found) == len(forms or ()) else None), False

    def _given(self, adapter: Adapter) -> Adapter:
        """Return the adapter with the weight that the change of a bias depends on."""
        if not adapter.needs_weight:
            return adapter
        weight = None if self.model is None else self.model.read(self.stem, "weight")
        if weight is None:
            raise self._needs_model("does not tell it:")
        return adapter.given((weight.double(),))

    def _no_original(self) -> Tensor:
        raise self._needs_model("does not tell it:")

    def _needs_model(self, what: str) -> LoraFileError:
        if self.model is not None:
            return LoraFileError(
                f"{self.lora.path}: {self.stem} ({self.algorithms}): its change depends on the model's own weight, and "
                f"{self.model.reason(self.stem)}: give the model that the file was trained on"
            )
        return LoraFileError(
            f"{self.lora.path}: {self.stem} ({self.algorithms}): the file {what} how its change depends on the "
            "model's own weight; give the model that it was trained on: --model DIR or FILE (model=…)"
        )


def changes_of(lora: Lora, model: Model | None = None) -> Iterator[Change]:
    """Yield what a file changes, module by module, weights before biases."""
    for stem, adapters in lora.adapters.items():
        for parameter in ("weight", "bias"):
            own = tuple(adapter for adapter in adapters if adapter.parameter == parameter)
            if own:
                yield Change(lora, stem, parameter, own, model)


def kernel(product: Product, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return factors in the shapes in which files have them, (out, r, 1…) and (r, in, k…), for a weight's shape."""
    ones = (1,) * (len(shape) - 2)
    return product.up.reshape(*product.up.shape, *ones), product.down.reshape(product.rank, *shape[1:])
