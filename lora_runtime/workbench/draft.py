"""A LoRA file in the making: tensors, what was kept of them, and where they came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lora_runtime.adapters import Adapter, LowRank
from lora_runtime.errors import LoraFileError
from lora_runtime.header import Header, read_header
from lora_runtime.lora import Lora
from lora_runtime.tensors import read_one
from lora_runtime.workbench.changes import kernel
from lora_runtime.workbench.kept import Outcome, Tally
from lora_runtime.workbench.low_rank import Product, energy_of, error_of
from lora_runtime.workbench.notes import Parent, notes_of
from lora_runtime.workbench.spelling import difference_keys, factor_keys, has_alpha, roles_of
from lora_runtime.workbench.writing import File, write_file

__all__ = ["ZERO", "Draft", "dtype_named", "dtype_of", "embedding_keys", "roles_of", "says_its_scale"]

ZERO = "its change is exactly zero"
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def dtype_named(name: str | torch.dtype | None) -> torch.dtype | None:
    """Return a dtype by its name; ValueError for another than float32, float16 and bfloat16."""
    if name is None or name in _DTYPES.values():
        return name  # type: ignore[return-value]
    if not isinstance(name, str) or name not in _DTYPES:
        raise ValueError(f"dtype {name}: give one of {', '.join(_DTYPES)}")
    return _DTYPES[name]


def dtype_of(adapters: Sequence[Adapter]) -> torch.dtype:
    """Return the dtype of the adapters' tensors, the widest where they differ; float16 where they have 8 bits.

    In 8 bits the least number above zero is 2⁻⁹ and more, and half of all factors would be lost.
    """
    found: torch.dtype | None = None
    for tensor in _tensors(adapters):
        if tensor.is_floating_point() and tensor.numel() > 1:
            own = tensor.dtype if tensor.dtype.itemsize > 1 else torch.float16
            found = own if found is None else torch.promote_types(found, own)
    return torch.float32 if found is None or found == torch.float64 else found


def says_its_scale(adapter: Adapter) -> bool:
    """Return whether an adapter's tensors tell all about it, whatever settings the file has beside them."""
    return isinstance(adapter, LowRank) and any(key.endswith(".alpha") for key in adapter.keys)


def embedding_keys(lora: Lora) -> list[str]:
    """Return the keys of the textual inversions that a file brings along."""
    return [f"bundle_emb.{name}.{inner}" for name, tensors in lora.embeddings.items() for inner in tensors]


def _tensors(adapters: Sequence[Adapter]) -> list[Tensor]:
    found: list[Tensor] = []
    waiting: list[Any] = [value for adapter in adapters for value in vars(adapter).values()]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (tuple, list)):
            waiting += value
        elif isinstance(value, Adapter):
            waiting += vars(value).values()
    return found


@dataclass
class Draft:
    """What will be in the file. `dtype`: of its tensors, or None for that of each module's own."""

    dtype: torch.dtype | None = None
    tensors: dict[str, Tensor] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)
    alphas: set[float] = field(default_factory=set)
    _headers: dict[Path, Header] = field(default_factory=dict)

    def copy(self, lora: Lora, keys: Sequence[str]) -> None:
        """Take tensors over as they are in a file, but for a dtype that was asked for."""
        header = self._headers.get(lora.path)
        if header is None:
            header = self._headers[lora.path] = read_header(lora.path)
        for key in keys:
            tensor = read_one(lora.path, header.tensors[key])
            if self.dtype is not None and tensor.is_floating_point() and tensor.numel() > 1:
                tensor = tensor.to(self.dtype)
            self.put({key: tensor}, lora.path)

    def copy_module(self, lora: Lora, stem: str, adapters: Sequence[Adapter], energy: float, reason: str) -> None:
        """Take all that a module has over; the reason is told."""
        self.copy(lora, list(dict.fromkeys(key for adapter in adapters for key in adapter.keys)))
        ranks = [adapter.rank for adapter in adapters if isinstance(adapter, LowRank)]
        self.alphas.update(float(adapter.alpha) for adapter in adapters if adapter.alpha is not None)
        self.tally.add(stem, energy, energy, rank=ranks[0] if len(ranks) == 1 else None)
        self.tally.unchanged[reason] += 1

    def factors(
        self,
        path: Path,
        stem: str,
        adapters: tuple[Adapter, ...],
        product: Product,
        shape: Sequence[int],
        energy: float,
        scale: float = 1.0,
    ) -> None:
        """Add the factors of scale · product for a weight of that shape; `energy` is that of the whole change.

        `adapters`: those of the file at `path` whose keys and dtype the new ones have, none where it is no LoRA. Only
        where the module's keys go with an alpha can the scale be another than 1.
        """
        assert scale == 1.0 or has_alpha(stem, adapters), stem
        dtype = self.dtype or dtype_of(adapters)
        up, down = kernel(product, shape)
        up, down = up.to(dtype).contiguous(), down.to(dtype).contiguous()
        if not (bool(torch.isfinite(up).all()) and bool(torch.isfinite(down).all())):
            raise LoraFileError(
                f"{path}: {stem}: its new factors are beyond what {dtype} can hold; give --dtype float32"
            )
        alpha = float(torch.tensor(scale * product.rank, dtype=torch.float32))
        rounded = Product(up.flatten(1).double(), down.flatten(1).double())
        self.put(factor_keys(stem, adapters, up, down, alpha), path)
        if has_alpha(stem, adapters):
            self.alphas.add(alpha)
        size, lost = scale * scale * energy_of(product), scale * scale * error_of(product, rounded)
        self.tally.add(stem, energy, min(size, energy), rank=product.rank, rounding=lost)

    def difference(self, path: Path, stem: str, parameter: str, adapters: tuple[Adapter, ...], delta: Tensor) -> None:
        """Add a full difference of a weight or a bias, float64."""
        dtype = self.dtype or dtype_of(adapters)
        values = delta.to(dtype).contiguous()
        if not bool(torch.isfinite(values).all()):
            raise LoraFileError(f"{path}: {stem}: its change is beyond what {dtype} can hold; give --dtype float32")
        self.put(difference_keys(stem, parameter, adapters, values), path)
        energy = float(delta.square().sum())
        self.tally.add(stem, energy, energy, rounding=float((values.double() - delta).square().sum()))

    def write(
        self, out: Path, parents: Sequence[tuple[Parent, Mapping[str, Any]]], verb: str, options: Mapping[str, Any]
    ) -> Outcome:
        """Write the file and return what it has; LoraFileError where nothing is left to be written."""
        if not self.tensors:
            names = ", ".join(parent.name for parent, _ in parents)
            reasons = "; ".join(dict.fromkeys(self.tally.left_out.values())) or "nothing was found"
            raise LoraFileError(f"{out}: nothing of {names} would be in it: {reasons}")
        ranks, alphas = sorted(self.tally.ranks), sorted(self.alphas)
        file: File = write_file(out, self.tensors, notes_of(parents, verb, options, ranks, alphas))
        return self.tally.outcome(file)

    def put(self, tensors: Mapping[str, Tensor], path: Path) -> None:
        """Add tensors by key, of the file at `path`; LoraFileError where there are others of that name."""
        for key, tensor in tensors.items():
            known = self.tensors.setdefault(key, tensor)
            if known is not tensor and not (known.shape == tensor.shape and torch.equal(known, tensor)):
                raise LoraFileError(f"{path}: {key} is in the new file already, with other values")
