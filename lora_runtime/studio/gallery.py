"""The LoRAs of the studio as cards: what stands on each, all there is to know of one, and what may be done with it."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lora_runtime.catalog import Entry, LoraCatalog
from lora_runtime.errors import CatalogError, LoraError, UnknownLoraError
from lora_runtime.families import UNKNOWN
from lora_runtime.header import read_header
from lora_runtime.panel.covers import Covers, find_cover
from lora_runtime.panel.filing import Filing
from lora_runtime.panel.marks import Marks, Seen
from lora_runtime.panel.patterns import has_one
from lora_runtime.panel.sidecars import FILMS, film_beside, origin_of, picture_beside, words_of
from lora_runtime.studio.fitting import Fit, Fitting
from lora_runtime.studio.shelf import Wanted, families, find, folders, mark_of, name_in_tags

__all__ = ["Card", "Found", "Gallery"]

_SECONDS_TO_FIT = 1.0  # in which headers are read, of files that do not say their family
_MOST_REFUSED = 100  # files whose reasons are told


@dataclass(frozen=True)
class Card:
    """A file to be chosen. `name` means it alone among the cards; `title` is its path, `tag` what a tag calls it.

    `words` are what it was trained with. `picture` and `film` are addresses below that of the cards, "" for none, and
    `page` that of the model's page. `other`: it is known to be for another family than that of the model.
    """

    name: str
    title: str
    tag: str
    family: str = ""
    words: tuple[str, ...] = ()
    picture: str = ""
    film: str = ""
    page: str = ""
    favourite: bool = False
    blurred: bool = False
    other: bool = False


@dataclass(frozen=True)
class Found:
    """What a question found: `total` files, of which `cards` are some.

    `unsure` of them were not looked at whether they fit. `at` is the place among all of the file that was asked about,
    -1 where it is not among them.
    """

    total: int
    cards: tuple[Card, ...]
    unsure: int = 0
    at: int = -1


class Gallery:
    """The cards of a catalog's files. Safe to use from several threads.

    A file is asked for by the name of its card, which is looked up among the files that are there and never made into a
    path: it leads to no other file. Files are changed where `allowed` says so, and only within the catalog's folders.
    """

    def __init__(
        self, catalog: LoraCatalog, marks: Marks, fitting: Fitting, allowed: Callable[[], bool] = lambda: False
    ) -> None:
        self._catalog, self.marks, self._fitting = catalog, marks, fitting
        self._filing = Filing(self, catalog.refresh, allowed)
        self._covers = Covers()
        self._listed: tuple[tuple[Entry, ...], dict[str, Entry], dict[Path, str], Counter[str]] | None = None

    # --- the files of `Filing` ---

    @property
    def bins(self) -> Sequence[Path]:
        """The folders that may have a bin in them."""
        return self._catalog.folders

    def entry(self, name: str) -> Entry | None:
        """Return the file of a card, None where it is gone."""
        return self._names()[0].get(name)

    def name_at(self, path: Path) -> str:
        """Return the name of the card of a file, "" where it has none."""
        return self._names()[1].get(path, "")

    # --- which cards there are ---

    def refresh(self) -> None:
        """Look at the folders again."""
        self._catalog.refresh()

    def find(
        self,
        wanted: Wanted,
        *,
        model: str = "",
        fits: bool = False,
        blurred: Sequence[str] = (),
        at: str = "",
        offset: int = 0,
        limit: int = 60,
    ) -> Found:
        """Return some of the cards that are wanted, and the place of the one with the name `at`.

        Those made for another family than the `model` come last; `fits` leaves out all that do not fit it. `blurred`
        are patterns of what a card has in its path, alias or words whose picture is not to be seen at once.
        """
        fit, seen, unsure = self._fitting.of(model), self.marks.seen(), 0
        found = find(self._catalog, wanted, seen, fit.is_for_another)
        if fits:
            found, unsure = _fitting(found, fit)
        asked = self.entry(at)
        place = next((place for place, entry in enumerate(found) if entry is asked), -1)
        part = found[offset : offset + limit]
        beside: dict[Path, Collection[str]] = {}
        cards = tuple(self._card(entry, fit, seen, blurred, beside) for entry in part)
        return Found(len(found), cards, unsure, place)

    def families(self, hidden: Sequence[str] = ()) -> dict[str, int]:
        """Return how many files each family has."""
        return families(self._catalog, hidden)

    def folders(self, hidden: Sequence[str] = ()) -> dict[str, int]:
        """Return how many files each folder has, at any depth."""
        return folders(self._catalog, hidden)

    def refused(self) -> tuple[int, list[tuple[str, str]]]:
        """Return how many files cannot be used, and the places of the first ones with the reasons."""
        refused = self._catalog.refused
        return len(refused), [(self._place_of(path), why) for path, why in [*refused.items()][:_MOST_REFUSED]]

    # --- what is asked of one card ---

    def details(self, name: str, model: str = "") -> dict[str, Any] | None:
        """Return what there is to know of a file, as JSON can hold it; None where it is gone."""
        entry = self.entry(name)
        if entry is None:
            return None
        fit, seen = self._fitting.of(model), self.marks.seen()
        card = self._card(entry, fit, seen, (), {})
        allowed = self._filing.allowed() and not self._leads_away(entry)
        return {
            "name": name,
            "title": card.title,
            "stem": entry.path.stem,
            "place": entry.relative + entry.path.suffix,
            "family": card.family,
            "coverage": fit.coverage(entry) or "",
            "description": "",
            "words": list(card.words),
            "page": card.page,
            "preview": f"{card.picture}&large=1" if card.picture else "",
            "film": card.film,
            "favourite": card.favourite,
            "used": mark_of(self._catalog, entry, seen).used,
            "allowed": allowed,
            **(self._filing.folders(entry) if allowed else {}),
        }

    def picture(self, name: str) -> Path | None:
        """Return the picture beside a file, None for none."""
        entry = self.entry(name)
        return picture_beside(entry.path) if entry else None

    def cover(self, name: str) -> tuple[bytes, str] | None:
        """Return a picture from a file's metadata and its media type, or None."""
        entry = self.entry(name)
        try:
            return find_cover(read_header(entry.path).metadata) if entry else None
        except LoraError:  # gone by now
            return None

    def film(self, name: str) -> tuple[Path, str] | None:
        """Return the film beside a file and its media type, or None."""
        entry = self.entry(name)
        found = film_beside(entry.path) if entry else None
        return (found, FILMS[found.suffix[1:]]) if found else None

    def star(self, name: str, favourite: bool) -> dict[str, Any]:
        """Make a file a favourite, or no more; raises LoraError or OSError. It is read for its hash."""
        entry = self.entry(name)
        if entry is None:
            raise UnknownLoraError(f'there is no LoRA "{name}" any more; refresh the page', name)
        self.marks.star(entry.path, self._catalog.hashes(entry).sha256, favourite)
        return {"favourite": favourite}

    def bin(self) -> dict[str, Any]:
        """Return what is in the bins, and whether files may be changed."""
        return {"bin": self._filing.bin(), "allowed": self._filing.allowed()}

    def change(self, action: object, given: Mapping[str, object]) -> dict[str, Any]:
        """Give a file another name or place, as `Filing.do`; raises LoraError or OSError.

        The answer has "tags" too: what a tag called the file before, and what it does now.
        """
        asked = given.get("name")
        entry = self.entry(asked) if isinstance(asked, str) else None
        if entry is not None and self._leads_away(entry):
            raise CatalogError(
                f"{entry.relative} lies outside of {entry.folder}, where a link leads; change it at its own place"
            )
        before = self._tag_of(entry) if entry else ""
        answer = self._filing.do(action, given)
        now = self.entry(str(answer["name"]))
        return {**answer, "tags": [before, self._tag_of(now) if now else ""]}

    # --- parts ---

    def _names(self) -> tuple[dict[str, Entry], dict[Path, str], Counter[str]]:
        """Return the files by the names of their cards, these by path, and how many files have each name in tags."""
        entries = self._catalog.entries
        listed = self._listed
        if listed is None or listed[0] is not entries:
            numbers = {folder: number for number, folder in enumerate(self._catalog.folders)}
            # Two folders may have a file of the same path, and a folder `ink.safetensors` beside `ink.SAFETENSORS`.
            by_name = {f"{numbers[each.folder]}/{each.relative}{each.path.suffix}": each for each in entries}
            by_path = {entry.path: name for name, entry in by_name.items()}
            listed = self._listed = entries, by_name, by_path, Counter(entry.name for entry in entries)
        return listed[1:]

    def _card(
        self,
        entry: Entry,
        fit: Fit,
        seen: Seen,
        blurred: Iterable[str],
        beside: dict[Path, Collection[str]],
    ) -> Card:
        folder = entry.path.parent
        if folder not in beside:  # looked at once, and not a dozen times for each card in it
            beside[folder] = _names_in(folder)
        files = beside[folder]
        name, words = self.name_at(entry.path), words_of(entry, files)
        return Card(
            name=name,
            title=entry.relative,
            tag=self._tag_of(entry),
            family="" if entry.family == UNKNOWN else entry.family,
            words=words,
            picture=_address("picture", name, picture_beside(entry.path, files)) or self._cover_address(entry, name),
            film=_address("film", name, film_beside(entry.path, files)),
            page=origin_of(entry.path, files).page,
            favourite=mark_of(self._catalog, entry, seen).favourite,
            blurred=has_one(blurred, (entry.relative, entry.alias or "", *words)),
            other=fit.is_for_another(entry),
        )

    def _cover_address(self, entry: Entry, name: str) -> str:
        return _address("picture", name, entry.path) if self._covers.has(entry) else ""

    def _tag_of(self, entry: Entry) -> str:
        return name_in_tags(self._catalog, entry, self._names()[2])

    def _leads_away(self, entry: Entry) -> bool:
        """Return whether a file lies behind a link that leads out of the folders."""
        real = Path(os.path.realpath(entry.path.parent))
        return not any(real.is_relative_to(os.path.realpath(folder)) for folder in self._catalog.folders)

    def _place_of(self, path: Path) -> str:
        top = next((folder for folder in self._catalog.folders if path.is_relative_to(folder)), None)
        return path.relative_to(top).as_posix() if top else path.name


def _fitting(entries: Iterable[Entry], fit: Fit) -> tuple[list[Entry], int]:
    """Return the files that fit a model, and how many there was no time for: these stay until it is asked again."""
    end = time.monotonic() + _SECONDS_TO_FIT
    found, unsure = [], 0
    for entry in entries:
        if fit.is_for_another(entry):
            continue
        if not fit.is_known(entry) and time.monotonic() >= end:
            unsure += 1
        elif fit.coverage(entry) is not None:
            continue
        found.append(entry)
    return found, unsure


def _names_in(folder: Path) -> frozenset[str]:
    try:
        return frozenset(os.listdir(folder))  # noqa: PTH208 -- names alone
    except OSError:
        return frozenset()


def _address(kind: str, name: str, path: Path | None) -> str:
    """Return an address below that of the cards; the time makes browsers fetch what was written anew."""
    if path is None:
        return ""
    try:
        changed = path.stat().st_mtime_ns
    except OSError:
        return ""
    return f"{kind}?name={quote(name.encode('utf-8', 'surrogatepass'), safe='')}&v={changed}"
