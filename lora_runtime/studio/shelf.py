"""Which of the LoRAs a page asks for, in which order, and what a tag calls them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from lora_runtime.catalog import Entry, LoraCatalog
from lora_runtime.errors import LoraError
from lora_runtime.families import UNKNOWN
from lora_runtime.panel.marks import Mark, Seen
from lora_runtime.panel.patterns import in_folders
from lora_runtime.panel.sidecars import has_words
from lora_runtime.prompt import parse_prompt

__all__ = ["Wanted", "families", "find", "folders", "mark_of", "name_in_tags", "names_of", "used_in"]

_NO_TAG = re.compile("[:>]")  # what ends a name in a tag


@dataclass(frozen=True)
class Wanted:
    """Which files are wanted: those that all of this is true of.

    `words` stand in their path, alias or family. `folder` is a path ("style/water"), "" for all. `families` are those
    that count, () for all. `hidden` are patterns of folders, as `panel.patterns` has them, whose files are left out.
    """

    words: str = ""
    folder: str = ""
    families: Collection[str] = ()
    favourites: bool = False
    hidden: Sequence[str] = field(default=())
    last_used_first: bool = False


def find(
    catalog: LoraCatalog, wanted: Wanted, seen: Seen | None = None, last: Callable[[Entry], bool] = lambda _: False
) -> list[Entry]:
    """Return the files that are wanted, those after all others of which `last` is true; `seen` are the marks."""
    seen = seen or Seen()
    words = wanted.words.casefold().split()
    hides = in_folders(wanted.hidden)
    below = f"{wanted.folder}/" if wanted.folder else ""
    found = [
        entry
        for entry in catalog.entries
        if entry.relative.startswith(below)
        and (not wanted.families or entry.family in wanted.families)
        and has_words(entry, words)
        and not hides(_folder_of(entry))
        and (not wanted.favourites or mark_of(catalog, entry, seen).favourite)
    ]
    if wanted.last_used_first:
        found.sort(key=lambda entry: -mark_of(catalog, entry, seen).used)
    found.sort(key=last)
    return found


def families(catalog: LoraCatalog, hidden: Sequence[str] = ()) -> dict[str, int]:
    """Return how many files each family has, the most frequent first, and "unknown" last."""
    hides = in_folders(hidden)
    counts = Counter(entry.family for entry in catalog.entries if not hides(_folder_of(entry)))
    return dict(sorted(counts.items(), key=lambda item: (item[0] == UNKNOWN, -item[1])))


def folders(catalog: LoraCatalog, hidden: Sequence[str] = ()) -> dict[str, int]:
    """Return the folders with files at any depth, and how many, in order."""
    hides = in_folders(hidden)
    counts: Counter[str] = Counter()
    for entry in catalog.entries:
        folder = _folder_of(entry)
        if hides(folder):
            continue
        while folder:
            counts[folder] += 1
            folder = folder.rpartition("/")[0]
    return dict(sorted(counts.items(), key=lambda item: item[0].casefold()))


def mark_of(catalog: LoraCatalog, entry: Entry, seen: Seen) -> Mark:
    """Return what is kept of a file."""
    known = catalog.known_hashes(entry) if seen.all else None
    return seen.of(entry.path, known.sha256 if known else "")


def used_in(catalog: LoraCatalog, prompt: str) -> Iterator[tuple[Path, str]]:
    """Yield the files that the tags of a prompt mean, each with its hash where that is known."""
    for name in dict.fromkeys(tag.name for tag in parse_prompt(prompt).tags):
        with suppress(LoraError):  # said by who applied it
            found = catalog.pair(name) or (catalog.resolve(name, look_again=False, suggest=False),)
            for entry in found:
                known = catalog.known_hashes(entry)
                yield entry.path, known.sha256 if known else ""


def names_of(catalog: LoraCatalog) -> dict[Path, str]:
    """Return what a tag calls each file."""
    entries = catalog.entries
    counts = Counter(entry.name for entry in entries)
    return {entry.path: name_in_tags(catalog, entry, counts) for entry in entries}


def name_in_tags(catalog: LoraCatalog, entry: Entry, counts: Mapping[str, int]) -> str:
    """Return what a tag calls a file: its name, its path where others have that too, its hash where none can.

    `counts` says how many files have each name.
    """
    name = entry.name if counts.get(entry.name, 0) <= 1 else entry.relative
    if _NO_TAG.search(name) or name != name.strip():
        with suppress(LoraError):  # gone since it was listed: the tag will say so
            name = f"#{catalog.hashes(entry).sha256_of_tensors[:12]}"
    return name


def _folder_of(entry: Entry) -> str:
    return entry.relative.rpartition("/")[0]
