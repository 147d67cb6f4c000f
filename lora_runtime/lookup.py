"""The tags of a prompt → a request for each whose file is found and can be read."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from lora_runtime.catalog import Entry, LoraCatalog
from lora_runtime.errors import CatalogError, LoraError
from lora_runtime.lora_cache import LoraCache
from lora_runtime.memory_policy import read_bytes
from lora_runtime.odd_strengths import doubts
from lora_runtime.problems import Images, Problems
from lora_runtime.prompt import LoraTag, Prompt
from lora_runtime.regions import find_place
from lora_runtime.requests import Request, request_of
from lora_runtime.stage import Side
from lora_runtime.tag_files import files_of, read_as

__all__ = ["Lookup", "Loras", "catalog_for", "clear_cache", "files_read", "limit_cache"]

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

    def requests(
        self, prompt: Prompt, *, seed: int | None = None, side: Side | None = None, images: Images = None
    ) -> list[Request]:
        """Return a request for each tag of a prompt whose file is found and can be read.

        `images` are those of a batch that the prompt is for: what is noted of its tags is about them.
        """
        found, problems = [], self._problems.of(images)
        for tag in prompt.tags:
            catalog, region = self.catalog, tag.conditions.region  # a folder that is missing is no matter of one tag
            try:
                files = self._files(tag, seed)
                loras = [_cache.load(entry.path, name=entry.name, trim=False) for _, entry in files]
                place = None if region is None else find_place(region, (*catalog.folders, Path.cwd()))
            except LoraError as error:
                problems.error(error, tag.span)
                continue
            self._used.update(entry.path for _, entry in files)
            if said := read_as(tag, files, catalog, seed):
                problems.info(said, tag.span)
            for (one, _), lora in zip(files, loras, strict=True):
                for doubt in doubts(one, lora):
                    problems.info(doubt, tag.span)
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

    def _files(self, tag: LoraTag, seed: int | None) -> list[tuple[LoraTag, Entry]]:
        unknown = self._unknown
        try:
            return files_of(self.catalog, tag, seed=seed, look_again=unknown == 0, suggest=unknown < _MOST_SUGGESTIONS)
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


def limit_cache(size: int | str) -> None:
    """Keep at most so many bytes of LoRA files in memory for the next `apply`: a number, or text such as "4GB".

    1 GiB unless said. Files used longest ago go first; what the last `apply` used stays in any case. ValueError for
    what is no size.
    """
    limit = read_bytes(size, "size")
    if limit is None:
        raise ValueError('size=None: give a number of bytes, or text such as "4GB"')
    _cache.limit = limit
    _cache.trim()


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
