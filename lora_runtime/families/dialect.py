"""What a naming family is: prefixes for components, and spellings for the modules inside one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

__all__ = ["ANY", "DENOISERS", "WHOLE", "Dialect", "Fusions", "Part", "Prefixes", "Spellings", "Translations"]

ANY = "model"  # the component of a module that is no known part of a pipeline: every prefix may mean it
DENOISERS = ("unet", "transformer", "prior", "decoder")  # a pipeline's first of these has the denoiser's prefixes

Prefixes = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Part:
    """What of a parameter a name means, where a model keeps in one parameter what files have in several.

    `index`, `count` and `span`: of `count` equal runs of rows the `span` from `index` on. Inside them, `inputs`: only
    so many of the input channels, the first; `transposed`: the model has (in, out) where files have (out, in);
    `swapped`: files have the second half of the rows before the first.
    """

    index: int = 0
    count: int = 1
    inputs: int | None = None
    transposed: bool = False
    swapped: bool = False
    span: int = 1

    def overlaps(self, other: Part) -> bool:
        """Return whether two parts of one parameter share a row."""
        return (
            self.index * other.count < (other.index + other.span) * self.count
            and other.index * self.count < (self.index + self.span) * other.count
        )

    def __str__(self) -> str:
        """Return the run of rows as people count: "1/3", "4-7/7"."""
        if self.count == 1:
            return ""
        last = "" if self.span == 1 else f"-{self.index + self.span}"
        return f"{self.index + 1}{last}/{self.count}"


WHOLE = Part()


class Spellings(Protocol):
    """A function from the paths of a component's modules to pairs (path, another name for it)."""

    def __call__(self, paths: Sequence[str]) -> Iterator[tuple[str, str]]:
        """Yield the pairs; a path that this family calls by its own name needs none."""
        ...


class Translations(Protocol):
    """A function from the paths of a model to what another layout of it has there.

    For a model that is built otherwise than in diffusers or transformers that is theirs; for one of theirs it is the
    original's, where its names are told apart from mere spellings by what they mean: a part, or swapped halves.
    """

    def __call__(self, paths: Sequence[str]) -> Iterator[tuple[str, str, Part]]:
        """Yield (path, their path, what of the parameter that is); nothing for models of another kind.

        One path may have several, one for each part; a name stands for one path only.
        """
        ...


class Fusions(Protocol):
    """A function from the paths of a model to the names of weights that files have in one and the model in several."""

    def __call__(self, paths: Sequence[str]) -> Iterator[tuple[tuple[str, ...], str]]:
        """Yield (paths in the order of the file's rows, the file's name for all of them together)."""
        ...


def _no_spellings(paths: Sequence[str]) -> Iterator[tuple[str, str]]:
    return iter(())


def _no_translations(paths: Sequence[str]) -> Iterator[tuple[str, str, Part]]:
    return iter(())


def _no_fusions(paths: Sequence[str]) -> Iterator[tuple[tuple[str, ...], str]]:
    return iter(())


@dataclass(frozen=True)
class Dialect:
    """A naming family: a file's name for a module is a prefix and a spelling.

    `.` and `_` count as the same in both, because trainers mix them. Prefixes and spellings of different families
    combine: kohya's prefix stands before diffusers' names in SD1 files and before LDM's in SDXL files.

    A model that is built otherwise than in diffusers or transformers has `translations`; what they give is spelled on
    by every family, as if the model had these paths. So are the names of `fusions`; how many rows each of the live
    weights has of such a one, the weights themselves tell.
    """

    name: str
    prefixes: Prefixes = field(default_factory=dict)  # component → prefixes
    spellings: Spellings = _no_spellings
    translations: Translations = _no_translations
    fusions: Fusions = _no_fusions
