"""Files as the panel shows them, and where a host has them from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from lora_runtime.catalog import Entry, LoraCatalog
from lora_runtime.errors import LoraError
from lora_runtime.panel.sidecars import has_words, words_of

__all__ = ["CatalogLibrary", "Library", "PanelFile"]


@dataclass(frozen=True)
class PanelFile:
    """One file: `name` is what a tag has for it, `title` what people see, `place` its path in its folder.

    `picture` is an address, or "". `fit` says what of it fits the model, "" where all does; `misfit` whether it is
    known to be another family's. `weight` is the preferred strength, 0 where there is none, and `words` are its trigger
    words. `remark` is what there is to say of how it was found.
    """

    name: str
    title: str
    place: str
    picture: str = ""
    family: str = ""
    fit: str = ""
    misfit: bool = False
    weight: float = 0.0
    words: tuple[str, ...] = ()
    remark: str = ""


class Library(Protocol):
    """The files that a prompt may name."""

    def find(self, name: str) -> PanelFile:
        """Return the file that a tag means; raises LoraError, a CatalogError with what comes near."""
        ...

    def search(self, words: str, limit: int) -> Sequence[PanelFile]:
        """Return files that have all of these words somewhere, in any order; the likeliest first."""
        ...


class CatalogLibrary:
    """The files of a catalog; `picture` gives the address of one's picture, `fit` what of it fits the model."""

    def __init__(
        self,
        catalog: LoraCatalog,
        picture: Callable[[Entry], str] = lambda _: "",
        fit: Callable[[Entry], str | None] = lambda _: None,
    ) -> None:
        self._catalog, self._picture, self._fit = catalog, picture, fit

    def find(self, name: str) -> PanelFile:
        """Return the file that a name means; of a pair for two denoisers the one for much noise, and that it is one."""
        pair = self._catalog.pair(name)
        if pair is not None:
            remark = f'"{name}" is read as "{pair.high.relative}" and "{pair.low.relative}", each for its own denoiser'
            return self._file(pair.high, remark)
        entry = self._catalog.resolve(name)
        loose = self._catalog.is_loose(name)
        return self._file(entry, f'"{name}" is read as "{entry.relative}"' if loose else "")

    def search(self, words: str, limit: int) -> list[PanelFile]:
        """Return the files with these words in path, alias or family, those whose name begins with them first."""
        wanted = words.casefold().split()
        found = []
        for entry in self._catalog.entries:
            if has_words(entry, wanted):
                begins = bool(wanted) and entry.name.casefold().startswith(wanted[0])
                found.append((not begins, entry.relative.casefold(), entry))
        return [self._file(entry) for *_, entry in sorted(found, key=lambda each: each[:2])[:limit]]

    def _file(self, entry: Entry, remark: str = "") -> PanelFile:
        family = "" if entry.family == "unknown" else entry.family
        return PanelFile(
            name=self._name(entry),
            title=entry.name,
            place=entry.relative,
            picture=self._picture(entry),
            family=family,
            fit=self._fit(entry) or "",
            words=words_of(entry),
            remark=remark,
        )

    def _name(self, entry: Entry) -> str:
        """Return the shortest name that means this file alone."""
        try:
            found = self._catalog.resolve(entry.name, look_again=False, suggest=False)
        except LoraError:
            return entry.relative
        return entry.name if found == entry else entry.relative
