"""The tags of a prompt → a request for each whose file is found and can be read."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from lora_runtime.catalog import Entry, LoraCatalog
from lora_runtime.errors import CatalogError, LoraError, UnknownLoraError
from lora_runtime.lora_cache import LoraCache
from lora_runtime.problems import Problems
from lora_runtime.prompt import LoraTag, Prompt
from lora_runtime.prompt.conditions import EXPERTS
from lora_runtime.regions import find_place
from lora_runtime.requests import Request, request_of
from lora_runtime.stage import Side

__all__ = ["Lookup", "Loras", "catalog_for", "clear_cache", "files_of"]

PathLike = str | os.PathLike[str]
Folder = PathLike | Mapping[str, PathLike]  # or single files, by the names that they are to have
Loras = Folder | Sequence[Folder] | LoraCatalog | None
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
                files = self._files(tag)
                loras = [_cache.load(entry.path, name=entry.name, trim=False) for _, entry in files]
                place = None if region is None else find_place(region, (*catalog.folders, Path.cwd()))
            except LoraError as error:
                self._problems.error(error, tag.span)
                continue
            self._used.update(entry.path for _, entry in files)
            if said := _read_as(tag, files, catalog):
                self._problems.info(said, tag.span)
            for (one, _), lora in zip(files, loras, strict=True):
                found.append(request_of(one, lora, hires=self._hires, seed=seed, side=side, place=place))
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

    def _files(self, tag: LoraTag) -> list[tuple[LoraTag, Entry]]:
        unknown = self._unknown
        try:
            return files_of(self.catalog, tag, look_again=unknown == 0, suggest=unknown < _MOST_SUGGESTIONS)
        except CatalogError:
            self._unknown += 1
            raise


def files_of(
    catalog: LoraCatalog, tag: LoraTag, *, look_again: bool = True, suggest: bool = True
) -> list[tuple[LoraTag, Entry]]:
    """Return the file that a tag means, or the two of a pair, each with a tag for that file and its denoiser alone.

    Raises as `LoraCatalog.resolve` does.
    """
    pair = catalog.pair(tag.name)
    if pair is None:
        try:
            return [(tag, catalog.resolve(tag.name, look_again=look_again, suggest=suggest))]
        except UnknownLoraError:
            pair = catalog.pair(tag.name)  # which may have come since the folders were looked through before
            if pair is None:
                raise
    asked = tag.conditions.expert
    return [
        (replace(tag, name=entry.relative, conditions=replace(tag.conditions, expert=expert)), entry)
        for expert, entry in ((EXPERTS["high"], pair.high), (EXPERTS["low"], pair.low))
        if asked in (None, expert)
    ]


def _read_as(tag: LoraTag, files: Sequence[tuple[LoraTag, Entry]], catalog: LoraCatalog) -> str:
    """Return what to say of a name that is that of no file, "" for others."""
    if all(one is tag for one, _ in files):
        return "".join(
            f'"{tag.name}" is read as "{entry.relative}"' for _, entry in files if catalog.is_loose(tag.name)
        )
    parts = [f'"{entry.relative}" for {one.conditions.expert}' for one, entry in files]
    return f'"{tag.name}" is read as {" and ".join(parts)}'


def clear_cache() -> None:
    """Forget the files that are kept in memory for the next `apply`, and what is known of their folders.

    Models keep what acts on them now. The index in the user's cache folder, which spares reading headers, stays.
    """
    _cache.clear()
    _catalog_of.cache_clear()


def catalog_for(loras: Loras) -> LoraCatalog:
    """Return the catalog of these folders and files; of two files of one name the first."""
    if isinstance(loras, LoraCatalog):
        return loras
    if loras is None:
        loras = LoraCatalog.default_folders()
    folders: list[str] = []
    files: dict[str, str] = {}
    for each in [loras] if isinstance(loras, (str, os.PathLike, Mapping)) else loras:
        if isinstance(each, Mapping):
            files = {name: _absolute(path) for name, path in each.items()} | files
        else:
            folders.append(_absolute(each))
    return _catalog_of(tuple(folders), tuple(files.items()))


def _absolute(path: PathLike) -> str:
    return str(Path(path).absolute())


@lru_cache(maxsize=8)
def _catalog_of(folders: tuple[str, ...], files: tuple[tuple[str, str], ...]) -> LoraCatalog:
    """Return the catalog of these, kept so that a second `apply` need not scan them again."""
    return LoraCatalog(*folders, files=dict(files))
