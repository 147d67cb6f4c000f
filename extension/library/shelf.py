"""The LoRA files as a user of the WebUI sees them: named as there, in its order, searched, and known by their hashes.

It adds to `lora_runtime.LoraCatalog` what the WebUI does differently: files in hidden folders and behind linked folders
count, and where several files share a stem, the stem means the last of them.

With 10,000 files in 100 folders, a first list takes as long as the catalog's first listing plus 0.3 s.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_runtime.catalog import Entry
from lora_runtime.errors import LoraError, LoraFileError, UnknownLoraError
from lora_runtime.panel.marks import Mark, Marks, Seen
from lora_runtime.wildcards import draw_name

from ..whole import is_whole, shown_path
from . import search
from .hashes import SHOWN_DIGITS, Hashes, is_hash
from .index import Book, Index, composed
from .listing import NAMELESS, Listing
from .metadata import Metadata
from .notes import Notes
from .patience import Patience
from .sidecar import Sidecar

__all__ = ["Shelf"]

_FEWEST_DIGITS_TO_READ = 12  # of a hash without "#", for which files are read: fewer may be a date, or a name mistyped
# Trainers write these where nobody gave a name, so they name nothing.
_EMPTY_ALIASES = frozenset({"none", "addams"})


class Shelf:
    """The usable LoRA files in some folders, under names that mean one file each. Safe to use from several threads.

    `hashes`, `notes`, `metadata` and `marks` are those of its files.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        """Take the folders, the first ones first; those that are not there yet count from the next refresh on."""
        self._listing = Listing(folders)
        self.hashes = Hashes(self._listing)
        self.notes = Notes(self._listing)
        self.metadata = Metadata()
        self.marks = Marks()

    @property
    def folders(self) -> tuple[Path, ...]:
        """The folders as given, absolute."""
        return self._listing.folders

    @property
    def refused(self) -> Mapping[Path, str]:
        """The files that are there and cannot be used, each with its reason."""
        return self._listing.refused()

    def refresh(self) -> None:
        """Look at the folders again; files that have not changed are not read again."""
        with self._listing.lock:
            self._listing.refresh()
            self.notes.forget()
            self.hashes.forget()

    # --- names ---

    def names(self) -> list[str]:
        """Return one name for each usable file, in the order of the WebUI: by folder, numbers as numbers."""
        return [book.name for book in self._listing.index().books]

    def paths(self) -> list[Path]:
        """Return the usable files, in the order of `names`."""
        return [book.entry.path for book in self._listing.index().books]

    def entry(self, name: str) -> Entry | None:
        """Return the file that `names` calls so."""
        book = self._listing.index().by_name.get(composed(name))
        return book.entry if book else None

    def name_of(self, entry: Entry) -> str:
        """Return the name of a file as `names` has it."""
        book = self._listing.index().by_path.get(entry.path)
        return book.name if book else shown_path(entry.relative)

    def name_at(self, path: Path) -> str:
        """Return the name of the file at a path, "" where none is listed."""
        book = self._listing.index().by_path.get(path)
        return book.name if book else ""

    def place_of(self, entry: Entry) -> str:
        """Return the file's path within the user's folder, with "/" and without the suffix."""
        book = self._listing.index().by_path.get(entry.path)
        return book.relative if book else entry.relative

    def path_from_root(self, entry: Entry) -> str:
        """Return the file's path with the name of the user's folder before it, as the WebUI has it."""
        book = self._listing.index().by_path.get(entry.path)
        top = shown_path(self.folders[book.top].name) if book else ""
        return f"{top}/{self.place_of(entry)}{entry.path.suffix}"

    def tag_name(self, entry: Entry, prefer_alias: bool) -> str:
        """Return what a click writes into the tag: the file's name, or its alias if that is preferred and means it.

        A name with a sign that would end the tag, its field or the line (the WebUI's comments begin with "#") is
        replaced by digits of the file's hash.
        """
        index = self._listing.index()
        alias = entry.alias or ""
        if prefer_alias and alias.casefold() not in _EMPTY_ALIASES:
            # Compared without case: on some systems, and for many people, Ink and ink are one name.
            mine = index.holders[alias.casefold()] == 1 and composed(alias) not in index.by_name
            if _writable(alias) and (mine or alias == entry.name == self.name_of(entry)):
                return alias
        name = self.name_of(entry)
        return name if _writable(name) else self._digits(index, self.hashes.short(entry))

    def _digits(self, index: Index, known: str) -> str:
        """Return digits of a hash as a tag has them: with "#" only where a file is called like the digits."""
        short = known[:SHOWN_DIGITS]
        return f"#{short}" if short in index.by_stem or short in index.by_name or index.holders[short] else short

    def names_for(self, entry: Entry) -> list[str]:
        """Return every name that means this file in a tag now, the one of `names` first; known hashes included."""
        index = self._listing.index()
        book = index.by_path.get(entry.path)
        if book is None:
            return [entry.relative]
        found = [book.name, book.relative, entry.relative]
        if index.by_stem[composed(entry.name)][-1] is book:
            found.append(entry.name)
        alias = entry.alias or ""
        if alias and index.holders[alias.casefold()] == 1:
            found.append(alias)
        found = [name for name in found if self._means(index, name, book)]
        for known in self.hashes.known(entry):
            found += [f"#{known[:SHOWN_DIGITS]}", self._digits(index, known)]
        return list(dict.fromkeys(found))

    def _means(self, index: Index, name: str, book: Book) -> bool:
        """Return whether a name is not, by the order of rules in `find`, another file's."""
        owners = index.by_stem.get(composed(name), ())
        if owners:
            return owners[-1] is book
        return index.by_name.get(composed(name), book) is book

    def find(self, name: str, patience: Patience | None = None) -> tuple[Entry, str]:
        """Return the file that `name` means in a tag, as it is now, and what there is to say about that, or "".

        As `LoraCatalog.resolve`, but of several files with this stem the last in the WebUI's order is taken, as there,
        and the digits of a hash also count without "#" where nothing is called so. Raises what that raises. `patience`
        is shared by the names of one question.
        """
        patience = patience or Patience()
        if name in patience.unknown:
            raise patience.unknown[name]
        try:
            return self._find_now(name, patience)
        except LoraError as error:
            if not self._looks_again(patience):
                patience.unknown[name] = error
                raise
        try:
            return self._find_now(name, patience)
        except LoraError as error:
            patience.unknown[name] = error
            raise

    def drawn(self, name: str, seed: int | None) -> str:
        """Return the name of a file in the folder that a wildcard names, by the seed of a picture."""
        with self._listing.lock:
            return draw_name(name, (book.relative for book in self._listing.index().books if not book.hidden), seed)

    def _looks_again(self, patience: Patience) -> bool:
        """Look through the folders unless that was done since the question was asked; return whether it was done."""
        with self._listing.lock:
            if self._listing.looked_at >= patience.since:
                return False
            self.refresh()
            return True

    def _find_now(self, name: str, patience: Patience) -> tuple[Entry, str]:
        with self._listing.lock:
            for spelled in dict.fromkeys((name, name.strip())):
                found = self._find(spelled)
                if found is not None and not _is_as_scanned(found[0]):
                    self.refresh()
                    found = self._find(spelled)
                if found is not None:
                    return found
            catalog, again = self._listing.catalog, self._listing.looked_at < patience.since
        name = name.strip()
        digits = name.removeprefix("#").lower()
        if name.startswith("#") and is_hash(digits):
            return self._find_digits(digits, patience), ""
        # Before the folders are looked through again nobody will see what comes near.
        suggest = not again and patience.suggestions > 0
        try:
            entry = catalog.resolve(name, look_again=False, suggest=suggest)
            if not _is_as_scanned(entry):
                self.refresh()
                entry = self._listing.catalog.resolve(name, look_again=False, suggest=suggest)
            if not is_whole(self.place_of(entry)):
                raise LoraFileError(f"{shown_path(entry.path)}: {NAMELESS}")
            return entry, f'"{name}" is read as "{entry.relative}"' if catalog.is_loose(name) else ""
        except UnknownLoraError:
            if is_hash(digits):
                patient = patience if len(digits) >= _FEWEST_DIGITS_TO_READ else Patience(seconds_to_hash=0)
                if (hashed := self.hashes.find(digits, patient)) is not None:
                    return hashed, ""
            patience.suggestions -= suggest
            raise

    def _find_digits(self, digits: str, patience: Patience) -> Entry:
        found = self.hashes.find(digits, patience)
        if found is None:
            unread = self.hashes.unknown()
            count = "1 file was" if unread == 1 else f"{unread:,} files were"
            more = f"; {count} not read for it yet, and each try reads some more" if unread else ""
            raise UnknownLoraError(f"no LoRA with a hash that begins with {digits}{more}", f"#{digits}")
        return found

    def _find(self, name: str) -> tuple[Entry, str] | None:
        """Return the file of a stem, of a name in `names` or of a path in the user's folders; None for other names."""
        index = self._listing.index()
        wanted = composed(name)
        if owners := index.by_stem.get(wanted):
            return owners[-1].entry, _choice(name, owners) if len(owners) > 1 else ""
        book = index.by_name.get(wanted)
        if book is None and "/" in name:
            paths = [book for book in index.books if book.relative == name]
            book = paths[0] if len(paths) == 1 else None
        return (book.entry, "") if book else None

    # --- favourites and dates of use ---

    def mark_of(self, entry: Entry, seen: Seen | None = None) -> Mark:
        """Return what is kept of a file; `seen` are all marks, where many files are asked about."""
        seen = self.marks.seen() if seen is None else seen
        known = self.hashes.known(entry) if seen.all else ()
        return seen.of(entry.path, known[0] if known else "")

    def star(self, entry: Entry, favourite: bool) -> None:
        """Make a file a favourite, or no more; raises OSError. It is read for its hash, by which it is known again."""
        self.marks.star(entry.path, self.hashes.known_sha256(entry, Patience()) or "", favourite)

    # --- searching ---

    def search(self, words: str = "", **options: Any) -> list[str]:
        """Return the names of the files that a `search.Query` with these fields finds."""
        query = search.Query(words, **options)
        with self._listing.lock:
            index = self._listing.index()
            notes = self.notes.all() if query.needs_notes else {}
            return [book.name for book in search.find(query, index, self.folders, notes, self.hashes)]

    def count(self, key: Callable[[Entry, Sidecar | None], str | None]) -> dict[str, int]:
        """Return how many files have each value of a key, the most frequent first; None is not counted."""
        with self._listing.lock:
            notes = self.notes.all()
            books = self._listing.index().books
            values = Counter(key(book.entry, notes.get(book.entry.path)) for book in books)
        return {value: count for value, count in values.most_common() if value is not None}

    @property
    def roots(self) -> list[Path]:
        """The folders that files are listed in: those given, and the linked and hidden ones in them."""
        return [root.path for root in self._listing.roots]

    @property
    def bins(self) -> list[Path]:
        """The folders that may have a bin in them."""
        return [*self.folders, *self.roots]

    def subfolders(self, *, hidden: bool = True) -> dict[str, int]:
        """Return the folders below the user's own, as `search.count_folders` does."""
        return search.count_folders(self._listing.index(), hidden=hidden)

    def tree(self, *, hidden: bool = True) -> dict[str, int]:
        """Return all folders, as `search.folder_tree` does."""
        return search.folder_tree(self._listing.index(), self.folders, hidden=hidden)

    def files_in(self, folder: str) -> list[str]:
        """Return the names of the files directly in a folder of `tree`, in order."""
        return [book.name for book in search.files_in(self._listing.index(), self.folders, folder)]


def _choice(name: str, owners: Sequence[Book]) -> str:
    *others, taken = owners
    tags = " or ".join(f"<lora:{book.name}>" for book in others[-3:])
    rest = "the other" if len(others) == 1 else "another"
    return f'{len(owners)} files are called "{name}": took {taken.name}; write {tags} for {rest}'


def _is_as_scanned(entry: Entry) -> bool:
    try:
        status = entry.path.stat()
    except OSError:
        return False
    return (status.st_size, status.st_mtime_ns) == entry.stamp


def _writable(name: str) -> bool:
    """Return whether a tag with this name is read as this name: by the WebUI, whose fields are strict, and here."""
    return bool(name) and name == name.strip() and not any(sign in name for sign in ":><=#\n\r") and name.isprintable()
