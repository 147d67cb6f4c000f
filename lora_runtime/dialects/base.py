"""What a naming family is: prefixes for components, and spellings for the modules inside one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

__all__ = ["ANY", "DENOISERS", "Dialect", "Prefixes", "Spellings"]

ANY = "model"  # the component of a module that is no known part of a pipeline: every prefix may mean it
DENOISERS = ("unet", "transformer", "prior", "decoder")  # a pipeline's first of these has the denoiser's prefixes

Prefixes = Mapping[str, tuple[str, ...]]


class Spellings(Protocol):
    """A function from the paths of a component's modules to pairs (path, another name for it)."""

    def __call__(self, paths: Sequence[str]) -> Iterator[tuple[str, str]]:
        """Yield the pairs; a path that this family calls by its own name needs none."""
        ...


def _none(paths: Sequence[str]) -> Iterator[tuple[str, str]]:
    return iter(())


@dataclass(frozen=True)
class Dialect:
    """A naming family: a file's name for a module is a prefix and a spelling.

    `.` and `_` count as the same in both, because trainers mix them. Prefixes and spellings of different families
    combine: kohya's prefix stands before diffusers' names in SD1 files and before LDM's in SDXL files.
    """

    name: str
    prefixes: Prefixes = field(default_factory=dict)  # component → prefixes
    spellings: Spellings = _none
