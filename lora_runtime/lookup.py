"""The tags of a prompt → a request for each whose file is found and can be read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from lora_runtime.catalog import Entry, LoraCatalog
from lora_runtime.errors import CatalogError, LoraError
from lora_runtime.lora_cache import LoraCache
from lora_runtime.problems import Problems
from lora_runtime.prompt import Prompt
from lora_runtime.regions import find_place
from lora_runtime.requests import Request, request_of
from lora_runtime.stage import Side

__all__ = ["Lookup", "Loras", "catalog_for", "clear_cache", "files_read"]

PathLike = str | os.PathLike[str]
Loras = PathLike | Sequence[PathLike] | LoraCatalog | None
_cache = LoraCache()
_MOST_SUGGESTIONS = 20  # of 10,000 files each takes 0.2 s


class Lookup:
    """The names in the tags of one `apply`, to files and their adapters.

    The folders are looked through once more for all unknown names together, and what is used here stays in the cache
    whatever its limit: it is in memory anyway.
    """

    def __init__(self, loras: Loras, problems: Problems, *, hires: bool = False) -> None:
        self._loras = loras
        self._problems = problems
        self._hires = hires
        self._catalog: LoraCatalog | None = None
        self._unknown = 0
        self._used: set[Path] = set()

    def requests(self, prompt: Prompt, *, seed: int | None = None, side: Side | None = None) -> list[Request]:
        """Return a request for each tag of a prompt whose file is found and can be read."""
        found = []
        for tag in prompt.tags:
            catalog, region = self.catalog, tag.conditions.region  # a folder that is missing is no matter of one tag
            try:
                entry = self._entry(tag.name)
                lora = _cache.load(entry.path, name=entry.name, trim=False)
                place = None if region is None else find_place(region, (*catalog.folders, Path.cwd()))
            except LoraError as error:
                self._problems.error(error, tag.span)
            else:
                self._used.add(entry.path)
                if catalog.is_loose(tag.name):
                    self._problems.info(f'"{tag.name}" is read as "{entry.relative}"', tag.span)
                found.append(request_of(tag, lora, hires=self._hires, seed=seed, side=side, place=place))
        return found

    def done(self) -> None:
        """Let the cache drop what no tag of this `apply` has used, as far as it is over its limit."""
        _cache.trim(keep=self._used)

    @property
    def catalog(self) -> LoraCatalog:
        """The catalog of the folders, looked up when the first tag asks for it."""
        if self._catalog is None:
            self._catalog = catalog_for(self._loras)
        return self._catalog

    def _entry(self, name: str) -> Entry:
        unknown = self._unknown
        try:
            return self.catalog.resolve(name, look_again=unknown == 0, suggest=unknown < _MOST_SUGGESTIONS)
        except CatalogError:
            self._unknown += 1
            raise


def clear_cache() -> None:
    """Forget the files that are kept in memory for the next `apply`, and what is known of their folders.

    Models keep what acts on them now. The index in the user's cache folder, which spares reading headers, stays.
    """
    _cache.clear()
    _catalog_of.cache_clear()


def files_read() -> int:
    """Return how many files this process has read; those that it had in memory already are not counted again."""
    return _cache.reads


def catalog_for(loras: Loras) -> LoraCatalog:
    """Return the catalog of these folders."""
    if isinstance(loras, LoraCatalog):
        return loras
    if loras is None:
        folders: Iterable[PathLike] = LoraCatalog.default_folders()
    else:
        folders = [loras] if isinstance(loras, (str, os.PathLike)) else loras
    return _catalog_of(tuple(str(Path(folder).absolute()) for folder in folders))


@lru_cache(maxsize=8)
def _catalog_of(folders: tuple[str, ...]) -> LoraCatalog:
    """Return the catalog of these folders, kept so that a second `apply` need not scan them again."""
    return LoraCatalog(*folders)
