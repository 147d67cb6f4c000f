"""What is asked to act beside a module: adapters, each at a strength of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor, nn

from lora_runtime.adapters import Adapter
from lora_runtime.dialects import WHOLE, Part
from lora_runtime.merge import Piece
from lora_runtime.stage import Varying

__all__ = ["Base", "Keeper", "LiveModule", "LiveTerm"]

Base = Callable[[], Tensor]  # returns W₀, dense, in the shape that the layer has


@dataclass(frozen=True, slots=True)
class LiveTerm:
    """One adapter at a strength that varies; `dyn` and `pieces` as in Term."""

    adapter: Adapter
    strength: Varying
    dyn: int | None = None
    part: Part = WHOLE
    pieces: tuple[Piece, ...] = ()


@dataclass(frozen=True, slots=True)
class LiveModule:
    """What acts beside one module of a component: terms by the name of its parameter.

    `identity` is equal only where the same files meet at the same strengths. `bases`: by the name of a parameter whose
    data is not W₀, what returns W₀ as a dense floating-point tensor in the layer's shape; it may cost, so it is asked
    only where an adapter needs W₀. `unmerged`: the parameters in which nothing is merged: there the module's own output
    is W₀x and its bias, so that an adapter which multiplies can act on the output.
    """

    component: str
    module: nn.Module
    terms: Mapping[str, tuple[LiveTerm, ...]]
    identity: tuple[object, ...]
    bases: Mapping[str, Base] = field(default_factory=dict)
    unmerged: frozenset[str] = frozenset()


class Keeper(Protocol):
    """Who keeps the original weights: the patcher of the model."""

    def original(self, parameter: nn.Parameter) -> Tensor:
        """Return W₀ of a parameter."""
        ...

    def grounded(self, adapter: Adapter, pieces: Sequence[Piece]) -> Adapter:
        """Return an adapter that has the originals of the pieces that it depends on."""
        ...
