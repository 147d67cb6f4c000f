"""The tags of a prompt → a request for each whose file is found and can be read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from lora_runtime.catalog import LoraCatalog
from lora_runtime.errors import LoraError
from lora_runtime.lora_cache import LoraCache
from lora_runtime.problems import Problems
from lora_runtime.prompt import Prompt
from lora_runtime.regions import find_place
from lora_runtime.requests import Request, request_of
from lora_runtime.stage import Side

__all__ = ["Loras", "load_tags"]

PathLike = str | os.PathLike[str]
Loras = PathLike | Sequence[PathLike] | LoraCatalog | None
_cache = LoraCache()


def load_tags(
    prompt: Prompt,
    *,
    loras: Loras,
    problems: Problems,
    hires: bool = False,
    seed: int | None = None,
    side: Side | None = None,
) -> Iterator[Request]:
    """Yield a request for each tag of a prompt whose file is found and can be read."""
    for tag in prompt.tags:
        catalog = catalog_for(loras)
        region = tag.conditions.region
        try:
            entry = catalog.resolve(tag.name)
            lora = _cache.load(entry.path, name=entry.name)
            place = None if region is None else find_place(region, (*catalog.folders, Path.cwd()))
        except LoraError as error:
            problems.error(error, tag.span)
        else:
            yield request_of(tag, lora, hires=hires, seed=seed, side=side, place=place)


def catalog_for(loras: Loras) -> LoraCatalog:
    """Return the catalog of these folders."""
    if isinstance(loras, LoraCatalog):
        return loras
    if loras is None:
        return LoraCatalog.default()
    folders = [loras] if isinstance(loras, (str, os.PathLike)) else list(loras)
    return _catalog_of(tuple(str(Path(folder).absolute()) for folder in folders))


@lru_cache(maxsize=8)
def _catalog_of(folders: tuple[str, ...]) -> LoraCatalog:
    """Return the catalog of these folders, kept so that a second `apply` need not scan them again."""
    return LoraCatalog(*folders)
