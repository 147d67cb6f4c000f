"""Weights that a host keeps: it writes W′ itself, whenever it loads a weight, from a patch that it was given for it.

A program with a memory manager of its own (Forge, ComfyUI) replaces parameters as it likes, at each load and each move;
where it computes W′ anew in each forward pass no parameter shows it. What is asked is therefore known by module and
name, and nothing here keeps a Parameter, which may be memory of a device that the host counts as free.

    plan.assignments ── host_patches ──▶ a HostPatch for each weight ── the host, later ──▶ patch.merged(W₀)
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from lora_runtime.adapters import Adapter
from lora_runtime.errors import ModelError
from lora_runtime.merge import Piece, Term, Workspace, may_overflow, merge_into, rows_of, too_large
from lora_runtime.plan import Assignment
from lora_runtime.targets import Target

__all__ = ["HostKeeper", "HostPatch", "Original", "host_patches", "identity_of"]

Original = Callable[[nn.Module, str], Tensor]
"""Gives W₀ of a module's parameter of that name, wherever the host has it now."""


@dataclass(frozen=True, eq=False)
class HostPatch:
    """All that is asked of one weight. `identity` is equal only where the same files meet at the same strengths."""

    target: Target
    name: str  # of the parameter in its module
    terms: tuple[Term, ...]
    identity: tuple[object, ...]
    workspace: Workspace

    def merged(self, weight: Tensor) -> Tensor:
        """Return W′ for W₀, in W₀'s dtype and on its device: one sum, one rounding.

        It is memory of its own and no inference tensor, whatever W₀ is. Raises StrengthError where W′ is more than the
        dtype can hold, ModelError where another weight that a file depends on cannot be read.
        """
        with torch.inference_mode(False), torch.no_grad():
            terms = self._grounded()
            value = torch.empty_like(weight)
            # A device's allocator has memory of this size at once, and the host counts what is kept.
            workspace = self.workspace if weight.device.type == "cpu" else None
            try:
                merge_into(value, weight, terms, workspace)
            except OverflowError as error:
                files = [*map(self._file, range(len(terms)))]
                raise too_large(self.target, weight, terms, files, error) from error
        return value

    def check(self, weight: Tensor) -> None:
        """Raise what `merged` would; of most weights the norms of the factors tell that it would raise nothing."""
        if weight.dtype == torch.float16 and may_overflow(self.terms, weight.dtype):
            self.merged(weight)

    def _grounded(self) -> list[Term]:
        """Return the terms; those that depend on the originals of others too are given them, as they are now."""
        try:
            return [replace(term, adapter=_grounded(term.adapter, term.pieces)) for term in self.terms]
        except ModelError as error:
            most = next((index for index, term in enumerate(self.terms) if term.pieces), 0)
            raise ModelError(str(error), error.sha256 or self._file(most)) from error

    def _file(self, index: int) -> str:
        return str(self.identity[index][0])  # type: ignore[index]


def host_patches(assignments: Iterable[Assignment], keeper: HostKeeper) -> list[HostPatch]:
    """Return what a plan asks of each weight, for a host to carry out later; no Parameter is kept."""
    workspace = Workspace()
    return [
        HostPatch(
            assignment.target,
            keeper.name_of(assignment.parameter),
            tuple(replace(term, pieces=keeper.by_place(term.pieces)) for term in assignment.terms),
            assignment.identity,
            workspace,
        )
        for assignment in assignments
    ]


def identity_of(patches: Iterable[HostPatch]) -> str:
    """Return a text that is equal only where the same is asked of the same places; "" for none."""
    parts = sorted(f"{patch.target}.{patch.name}={patch.identity!r}" for patch in patches)
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogatepass")).hexdigest() if parts else ""


class HostKeeper:
    """Who knows where the parameters of a model are now, and asks the host for their originals; not to be kept."""

    def __init__(self, modules: Iterable[nn.Module], original: Original) -> None:
        """`modules`: all of the model; `original` is asked when a W₀ is needed, also after the keeper is gone."""
        self._original = original
        self._places = {
            id(parameter): (weakref.ref(module), name)
            for module in modules
            for name, parameter in module._parameters.items()
            if parameter is not None
        }

    def name_of(self, parameter: nn.Parameter) -> str:
        """Return the name that a parameter has in its module."""
        return self._places[id(parameter)][1]

    def original(self, parameter: nn.Parameter) -> Tensor:
        """Return W₀ of a parameter of the model."""
        return _read(*self._places[id(parameter)], self._original)

    def grounded(self, adapter: Adapter, pieces: Sequence[Piece]) -> Adapter:
        """Return an adapter that has the originals of the pieces that it depends on."""
        return _grounded(adapter, self.by_place(pieces))

    def by_place(self, pieces: Sequence[Piece]) -> tuple[Piece, ...]:
        """Return pieces that ask for their W₀ by module and name, and keep no Parameter."""
        return tuple(
            piece
            if piece.base is not None or piece.parameter is None
            else Piece(None, piece.part, None, partial(_read, *self._places[id(piece.parameter)], self._original))
            for piece in pieces
        )


def _grounded(adapter: Adapter, pieces: Sequence[Piece]) -> Adapter:
    if not pieces:
        return adapter
    return adapter.given(tuple(rows_of(piece.base(), piece.part) for piece in pieces if piece.base is not None))


def _read(reference: weakref.ref[nn.Module], name: str, original: Original) -> Tensor:
    module = reference()
    if module is None:
        raise ModelError(f"the layer whose {name} is needed is gone")
    return original(module, name)
