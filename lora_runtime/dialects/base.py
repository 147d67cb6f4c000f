"""What a naming family is: prefixes for components, and spellings for the modules inside one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

__all__ = ["ANY", "DENOISERS", "WHOLE", "Dialect", "Part", "Prefixes", "Spellings", "Translations"]

ANY = "model"  # the component of a module that is no known part of a pipeline: every prefix may mean it
DENOISERS = ("unet", "transformer", "prior", "decoder")  # a pipeline's first of these has the denoiser's prefixes

Prefixes = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Part:
    """What of a parameter a name means, where a model keeps in one parameter what files have in several.

    `index` and `count`: of `count` equal runs of rows the one at `index`. Inside it, `inputs`: only so many of the
    input channels, the first; `transposed`: the model has (in, out) where files have (out, in); `swapped`: files have
    the second half of the rows before the first.
    """

    index: int = 0
    count: int = 1
    inputs: int | None = None
    transposed: bool = False
    swapped: bool = False

    def overlaps(self, other: Part) -> bool:
        """Return whether two parts of one parameter share an element."""
        return self.count != other.count or self.index == other.index

    def __str__(self) -> str:
        """Return the run of rows as people count: "1/3"."""
        return "" if self.count == 1 else f"{self.index + 1}/{self.count}"


WHOLE = Part()


class Spellings(Protocol):
    """A function from the paths of a component's modules to pairs (path, another name for it)."""

    def __call__(self, paths: Sequence[str]) -> Iterator[tuple[str, str]]:
        """Yield the pairs; a path that this family calls by its own name needs none."""
        ...


class Translations(Protocol):
    """A function from the paths of a model that is built otherwise to what diffusers or transformers have there."""

    def __call__(self, paths: Sequence[str]) -> Iterator[tuple[str, str, Part]]:
        """Yield (path, their path, what of the parameter that is); nothing for models of another kind.

        One path may have several, one for each part; a name stands for one path only.
        """
        ...


def _no_spellings(paths: Sequence[str]) -> Iterator[tuple[str, str]]:
    return iter(())


def _no_translations(paths: Sequence[str]) -> Iterator[tuple[str, str, Part]]:
    return iter(())


@dataclass(frozen=True)
class Dialect:
    """A naming family: a file's name for a module is a prefix and a spelling.

    `.` and `_` count as the same in both, because trainers mix them. Prefixes and spellings of different families
    combine: kohya's prefix stands before diffusers' names in SD1 files and before LDM's in SDXL files.

    A model that is built otherwise than in diffusers or transformers has `translations`; what they give is spelled on
    by every family, as if the model had these paths.
    """

    name: str
    prefixes: Prefixes = field(default_factory=dict)  # component → prefixes
    spellings: Spellings = _no_spellings
    translations: Translations = _no_translations
