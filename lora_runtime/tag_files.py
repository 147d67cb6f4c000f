"""A tag → the files that it means, each with a tag for it alone: one, the two of a pair, or one drawn from a folder."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from lora_runtime.catalog import Entry, LoraCatalog
from lora_runtime.errors import UnknownLoraError
from lora_runtime.expert_pairs import pairs_of
from lora_runtime.prompt import LoraTag
from lora_runtime.prompt.conditions import EXPERTS
from lora_runtime.prompt.excerpt import quote
from lora_runtime.wildcards import draw_name, is_wildcard

__all__ = ["drawn_from", "files_of", "names_to_draw", "read_as"]


def files_of(
    catalog: LoraCatalog, tag: LoraTag, *, seed: int | None = None, look_again: bool = True, suggest: bool = True
) -> list[tuple[LoraTag, Entry]]:
    """Return the file that a tag means, or the two of a pair, each with a tag for that file and its denoiser alone.

    `seed` is what one file of a folder is drawn by. Raises as `LoraCatalog.resolve` does.
    """
    try:
        tag = drawn_from(catalog, tag, seed)
    except UnknownLoraError:
        if not look_again or seed is None:
            raise
        catalog.refresh()
        tag = drawn_from(catalog, tag, seed)
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


def drawn_from(catalog: LoraCatalog, tag: LoraTag, seed: int | None) -> LoraTag:
    """Return the tag with the name of a file where it has that of a folder, by the seed of a picture."""
    if not is_wildcard(tag.name):
        return tag
    return replace(tag, name=draw_name(tag.name, names_to_draw(catalog.entries), seed))


def names_to_draw(entries: Iterable[Entry]) -> Iterator[str]:
    """Yield the paths that one is drawn from: of a pair that of both, and none that no tag can have."""
    entries = list(entries)
    pairs = {pair: name for name, pair in reversed([*pairs_of(entries)])}  # the path is the first of its names
    halves = {entry.path for pair in pairs for entry in pair}
    names = [*(entry.relative for entry in entries if entry.path not in halves), *pairs.values()]
    yield from (name for name in names if not _UNTYPED.search(name))


_UNTYPED = re.compile(r"[:<>]")


def read_as(tag: LoraTag, files: Sequence[tuple[LoraTag, Entry]], catalog: LoraCatalog, seed: int | None = None) -> str:
    """Return what to say of a name that is that of no file, "" for others."""
    if is_wildcard(tag.name):
        return f'"{tag.name}" is {" and ".join(quote(entry.relative) for _, entry in files)} for the seed {seed}'
    if all(one is tag for one, _ in files):
        return "".join(
            f'"{tag.name}" is read as "{entry.relative}"' for _, entry in files if catalog.is_loose(tag.name)
        )
    parts = [f'"{entry.relative}" for {one.conditions.expert}' for one, entry in files]
    return f'"{tag.name}" is read as {" and ".join(parts)}'
