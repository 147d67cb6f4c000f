"""The LoRA files as a user of the WebUI sees them: named as there, in its order, searched, and known by their hashes.

It adds to `lora_runtime.LoraCatalog` what the WebUI does differently: files in hidden folders and behind linked folders
count, and where several files share a stem, the stem means the last of them.

With 10,000 files in 100 folders, a first list takes as long as the catalog's first listing plus 0.3 s, a search 20 ms.
"""

from __future__ import annotations

import functools
import os
import re
import threading
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Literal

from lora_runtime.catalog import Entry, LoraCatalog
from lora_runtime.errors import LoraError, LoraFileError, UnknownLoraError
from lora_runtime.file_index import load_facts

from . import sidecar
from .sidecar import Sidecar
from .whole import is_whole, shown_path

__all__ = ["Hidden", "Patience", "Shelf", "SortKey"]

Hidden = Literal["Always", "When searched", "Never"]
SortKey = Literal["default", "name", "date_created", "date_modified"]
Fits = Callable[[Entry, "Sidecar | None"], bool]

_SUFFIX = ".safetensors"
_DIGITS = re.compile(r"([0-9]+)")
_HASH = re.compile(r"[0-9a-f]{8,64}")
_HEX = re.compile(r"[0-9a-f]{4,64}")
_SHOWN_DIGITS = 12
# SHA-256 of nothing: files without tensors have it in common, and it names none of them.
_HASH_OF_NOTHING = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
_FEWEST_DIGITS_TO_READ = 12  # of a hash without "#", for which files are read: fewer may be a date, or a name mistyped
_SHORTEST_SEARCH_FOR_HIDDEN = 4
_NAMELESS = "its name, or that of a folder that it is in, is not UTF-8, so that no prompt can have it; rename it"
# Trainers write these where nobody gave a name, so they name nothing.
_EMPTY_ALIASES = frozenset({"none", "addams"})


@dataclass
class Patience:
    """What looking up names may still cost, for all names of one question together: somebody waits for the answer.

    The folders are looked through again if that was last done before `since` (`time.monotonic()`). For hashes that are
    not known files are read for so many seconds, and so many unknown names are compared with all others. `unknown` are
    the names that lead nowhere, found out once.
    """

    since: float = field(default_factory=time.monotonic)
    seconds_to_hash: float = 1.0
    suggestions: int = 10
    unknown: dict[str, LoraError] = field(default_factory=dict)


@dataclass(frozen=True)
class _Root:
    """One folder of the catalog: `place` is where it lies in the folder `top` of the user, "" for that itself."""

    path: Path
    top: int
    place: str


class _Book:
    """A file with what the shelf knows of it; `relative` is its path in the user's folder, with "/" and no suffix."""

    __slots__ = ("_created", "_haystack", "entry", "hidden", "name", "relative", "top")

    def __init__(self, entry: Entry, root: _Root) -> None:
        self.entry = entry
        self.top = root.top
        self.relative = f"{root.place}/{entry.relative}" if root.place else entry.relative
        self.hidden = self.relative.startswith(".") or "/." in self.relative
        self.name = entry.name
        self._created: float | None = None
        self._haystack: tuple[Sidecar | None, str] | None = None

    @property
    def created(self) -> float:
        """When the file came to its place, as far as the system tells."""
        if self._created is None:
            try:
                status = self.entry.path.stat()
            except OSError:
                return 0.0
            self._created = float(getattr(status, "st_birthtime", status.st_ctime))
        return self._created

    def haystack(self, notes: Sidecar | None) -> str:
        """Return all that is searched, in lower case."""
        if self._haystack is None or self._haystack[0] is not notes:
            parts = [self.relative, self.entry.alias or ""]
            if notes:
                parts += [notes.description, notes.activation_text]
            self._haystack = notes, "\n".join(parts).casefold()
        return self._haystack[1]


class _Index:
    """The shelf at one moment."""

    def __init__(self, entries: tuple[Entry, ...], roots: Mapping[Path, _Root], tops: Sequence[Path]) -> None:
        self.entries = entries
        # By path: a folder within another of the given ones would list its files twice.
        books = {entry.path: _Book(entry, roots[entry.folder]) for entry in entries}
        self.nameless = [book for book in books.values() if not is_whole(book.relative)]
        usable = (book for book in books.values() if is_whole(book.relative))
        self.books = sorted(usable, key=lambda book: (book.top, *_walk_key(book.relative)))
        self.by_stem: dict[str, list[_Book]] = {}
        for book in self.books:
            self.by_stem.setdefault(_composed(book.entry.name), []).append(book)
        for book in self.books:  # a file that goes by its folder's name is known to the WebUI by its own
            self.by_stem.setdefault(_composed(book.entry.path.stem), [book])
        self._name_all(tops)
        self.by_name = {_composed(book.name): book for book in self.books}
        self.by_path = {book.entry.path: book for book in self.books}
        names = {book: {book.entry.name.casefold(), (book.entry.alias or "").casefold()} for book in self.books}
        self.holders = Counter(name for own in names.values() for name in own)

    def _name_all(self, tops: Sequence[Path]) -> None:
        """Give every book the shortest name that means it alone."""
        paths = Counter(book.relative for book in self.books)
        for book in self.books:
            if len(self.by_stem[_composed(book.entry.name)]) == 1:
                continue
            if paths[book.relative] > 1:
                book.name = f"{tops[book.top].name}/{book.relative}"
            else:
                # Of `ink` and `style/ink`, the first has no path that differs from the stem they share.
                book.name = book.relative if "/" in book.relative else f"./{book.relative}"
        taken: set[str] = set()
        for book in self.books:
            # Two given folders of the same name, or a folder called like another's path.
            while _composed(book.name) in taken:
                book.name = f"./{book.name}"
            taken.add(_composed(book.name))


class Shelf:
    """The usable LoRA files in some folders, under names that mean one file each. Safe to use from several threads."""

    def __init__(self, folders: Sequence[Path]) -> None:
        """Take the folders, the first ones first; those that are not there yet count from the next refresh on."""
        self._folders = tuple(dict.fromkeys(Path(os.path.normpath(folder.absolute())) for folder in folders))
        self._lock = threading.RLock()
        self._roots: tuple[_Root, ...] = ()
        self._catalog: LoraCatalog | None = None
        self._index: _Index | None = None
        self._notes: dict[Path, tuple[int, Sidecar]] = {}
        self._listings: dict[Path, tuple[int, frozenset[str]]] = {}
        self._notes_are_read = False
        self._hashes: dict[Path, tuple[tuple[int, int], tuple[str, ...]]] | None = None
        self._looked_at = 0.0  # when the folders were looked through last, as time.monotonic() has it

    @property
    def folders(self) -> tuple[Path, ...]:
        """The folders as given, absolute."""
        return self._folders

    @property
    def catalog(self) -> LoraCatalog:
        """The catalog of all folders, those behind links and hidden ones too; another one when these have changed."""
        with self._lock:
            if self._catalog is None:
                self._open()
            assert self._catalog is not None
            return self._catalog

    @property
    def refused(self) -> Mapping[Path, str]:
        """The files that are there and cannot be used, each with its reason."""
        with self._lock:
            index = self._now()
            # The catalog refuses a link out of its folder, which is entered here all the same.
            inside = {root.path for root in self._roots}
            found = {path: reason for path, reason in self.catalog.refused.items() if path not in inside}
            return {**found, **{book.entry.path: _NAMELESS for book in index.nameless}}

    def refresh(self) -> None:
        """Look at the folders again; files that have not changed are not read again."""
        with self._lock:
            fresh = self._catalog is None
            self._looked_at = time.monotonic()
            self._open()
            if not fresh:
                self.catalog.refresh()
            self._notes_are_read = False
            self._listings.clear()  # some network folders keep their time when a picture comes
            self._hashes = None

    # --- names ---

    def names(self) -> list[str]:
        """Return one name for each usable file, in the order of the WebUI: by folder, numbers as numbers."""
        return [book.name for book in self._now().books]

    def paths(self) -> list[Path]:
        """Return the usable files, in the order of `names`."""
        return [book.entry.path for book in self._now().books]

    def entry(self, name: str) -> Entry | None:
        """Return the file that `names` calls so."""
        book = self._now().by_name.get(_composed(name))
        return book.entry if book else None

    def name_of(self, entry: Entry) -> str:
        """Return the name of a file as `names` has it."""
        book = self._now().by_path.get(entry.path)
        return book.name if book else shown_path(entry.relative)

    def place_of(self, entry: Entry) -> str:
        """Return the file's path within the user's folder, with "/" and without the suffix."""
        book = self._now().by_path.get(entry.path)
        return book.relative if book else entry.relative

    def path_from_root(self, entry: Entry) -> str:
        """Return the file's path with the name of the user's folder before it, as the WebUI has it."""
        book = self._now().by_path.get(entry.path)
        top = shown_path(self._folders[book.top].name) if book else ""
        return f"{top}/{self.place_of(entry)}{entry.path.suffix}"

    def tag_name(self, entry: Entry, prefer_alias: bool) -> str:
        """Return what a click writes into the tag: the file's name, or its alias if that is preferred and means it.

        A name with a sign that would end the tag, its field or the line (the WebUI's comments begin with "#") is
        replaced by digits of the file's hash.
        """
        index = self._now()
        alias = entry.alias or ""
        if prefer_alias and alias.casefold() not in _EMPTY_ALIASES:
            # Compared without case: on some systems, and for many people, Ink and ink are one name.
            mine = index.holders[alias.casefold()] == 1 and _composed(alias) not in index.by_name
            if _writable(alias) and (mine or alias == entry.name == self.name_of(entry)):
                return alias
        name = self.name_of(entry)
        return name if _writable(name) else self._digits(index, self.short_hash(entry))

    def _digits(self, index: _Index, known: str) -> str:
        """Return digits of a hash as a tag has them: with "#" only where a file is called like the digits."""
        short = known[:_SHOWN_DIGITS]
        return f"#{short}" if short in index.by_stem or short in index.by_name or index.holders[short] else short

    def names_for(self, entry: Entry) -> list[str]:
        """Return every name that means this file in a tag now, the one of `names` first; known hashes included."""
        index = self._now()
        book = index.by_path.get(entry.path)
        if book is None:
            return [entry.relative]
        found = [book.name, book.relative, entry.relative]
        if index.by_stem[_composed(entry.name)][-1] is book:
            found.append(entry.name)
        alias = entry.alias or ""
        if alias and index.holders[alias.casefold()] == 1:
            found.append(alias)
        found = [name for name in found if self._means(index, name, book)]
        for known in self._known_hashes(entry):
            found += [f"#{known[:_SHOWN_DIGITS]}", self._digits(index, known)]
        return list(dict.fromkeys(found))

    def _means(self, index: _Index, name: str, book: _Book) -> bool:
        """Return whether a name is not, by the order of rules in `find`, another file's."""
        owners = index.by_stem.get(_composed(name), ())
        if owners:
            return owners[-1] is book
        return index.by_name.get(_composed(name), book) is book

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

    def _looks_again(self, patience: Patience) -> bool:
        """Look through the folders unless that was done since the question was asked; return whether it was done."""
        with self._lock:
            if self._looked_at >= patience.since:
                return False
            self.refresh()
            return True

    def _find_now(self, name: str, patience: Patience) -> tuple[Entry, str]:
        with self._lock:
            for spelled in dict.fromkeys((name, name.strip())):
                found = self._find(spelled)
                if found is not None and not _is_as_scanned(found[0]):
                    self.refresh()
                    found = self._find(spelled)
                if found is not None:
                    return found
            catalog, again = self.catalog, self._looked_at < patience.since
        name = name.strip()
        digits = name.removeprefix("#").lower()
        if name.startswith("#") and _HASH.fullmatch(digits):
            return self._find_digits(digits, patience), ""
        # Before the folders are looked through again nobody will see what comes near.
        suggest = not again and patience.suggestions > 0
        try:
            entry = catalog.resolve(name, look_again=False, suggest=suggest)
            if not _is_as_scanned(entry):
                self.refresh()
                entry = self.catalog.resolve(name, look_again=False, suggest=suggest)
            if not is_whole(self.place_of(entry)):
                raise LoraFileError(f"{shown_path(entry.path)}: {_NAMELESS}")
            return entry, ""
        except UnknownLoraError:
            if _HASH.fullmatch(digits):
                patient = patience if len(digits) >= _FEWEST_DIGITS_TO_READ else Patience(seconds_to_hash=0)
                if (hashed := self.by_hash(digits, patient)) is not None:
                    return hashed, ""
            patience.suggestions -= suggest
            raise

    def _find_digits(self, digits: str, patience: Patience) -> Entry:
        found = self.by_hash(digits, patience)
        if found is None:
            with self._lock:
                unread = sum(not self._known_hashes(book.entry) for book in self._now().books)
            count = "1 file was" if unread == 1 else f"{unread:,} files were"
            more = f"; {count} not read for it yet, and each try reads some more" if unread else ""
            raise UnknownLoraError(f"no LoRA with a hash that begins with {digits}{more}", f"#{digits}")
        return found

    def _find(self, name: str) -> tuple[Entry, str] | None:
        """Return the file of a stem, of a name in `names` or of a path in the user's folders; None for other names."""
        index = self._now()
        wanted = _composed(name)
        if owners := index.by_stem.get(wanted):
            return owners[-1].entry, _choice(name, owners) if len(owners) > 1 else ""
        book = index.by_name.get(wanted)
        if book is None and "/" in name:
            paths = [book for book in index.books if book.relative == name]
            book = paths[0] if len(paths) == 1 else None
        return (book.entry, "") if book else None

    # --- hashes ---

    def short_hash(self, entry: Entry) -> str:
        """Return the first 12 digits of the SHA-256 of the tensors, as the WebUI shows it; raises LoraFileError."""
        return self._read_hashes(entry)[1][:_SHOWN_DIGITS]

    def known_sha256(self, entry: Entry, patience: Patience) -> str | None:
        """Return the SHA-256 of the whole file where it is known, or there is patience to read it; else None."""
        known = self._known_hashes(entry)
        if not known and patience.seconds_to_hash > 0:
            known = self._read_patiently(entry, patience)
        return known[0] if known else None

    def _read_hashes(self, entry: Entry) -> tuple[str, str]:
        """Return the whole file's hash and that of its tensors. Not under the lock: pictures and cards go on."""
        try:
            found = self.catalog.hashes(entry)
        except KeyError:
            raise LoraFileError(f"{entry.path}: its folder is none of the LoRA folders any more") from None
        digits = found.sha256, found.sha256_of_tensors
        self._remember(entry, digits)
        return digits

    def _read_patiently(self, entry: Entry, patience: Patience) -> tuple[str, ...]:
        """Return the hashes, () for a file that is gone or changed; the time comes out of the patience."""
        began = time.monotonic()
        try:
            return self._read_hashes(entry)
        except LoraError:
            return ()
        finally:
            patience.seconds_to_hash -= time.monotonic() - began

    def known_short_hash(self, entry: Entry) -> str:
        """Return what `short_hash` would, if that needs no reading of the file, else ""."""
        known = self._known_hashes(entry)
        return known[-1][:_SHOWN_DIGITS] if known else ""

    def by_hash(self, short: str, patience: Patience | None = None) -> Entry | None:
        """Return the file one of whose hashes begins with these 8 to 64 hex digits, or None.

        Files that were never hashed are, the small ones first, as long as there is patience: what was read is
        remembered, so that asking again goes further. Files without tensors are not found by the hash of nothing.
        """
        patience = patience or Patience()
        prefix = short.strip().lower()
        if not _HASH.fullmatch(prefix) or _HASH_OF_NOTHING.startswith(prefix):
            return None
        with self._lock:
            books = self._now().books
            unknown = []
            for book in books:
                known = self._known_hashes(book.entry)
                if any(digits.startswith(prefix) for digits in known):
                    return book.entry
                if not known:
                    unknown.append(book.entry)
        # Without the lock: pictures and cards go on meanwhile.
        for entry in sorted(unknown, key=lambda entry: entry.size):
            if patience.seconds_to_hash <= 0:
                break
            if any(digits.startswith(prefix) for digits in self._read_patiently(entry, patience)):
                return entry
        return None

    def _known_hashes(self, entry: Entry) -> tuple[str, ...]:
        """Return the whole file's hash and that of its tensors, if they were computed before for this content."""
        with self._lock:
            if self._hashes is None:
                self._hashes = {}
                self._now()
                for root in self._roots:
                    for key, fact in load_facts(os.path.realpath(root.path)).items():
                        if fact.sha256 and fact.sha256_of_tensors:
                            self._hashes[root.path / key] = fact.stamp, (fact.sha256, fact.sha256_of_tensors)
            stamp, known = self._hashes.get(entry.path, ((0, 0), ()))
            return known if stamp == entry.stamp else ()

    def _remember(self, entry: Entry, digits: tuple[str, str]) -> None:
        with self._lock:
            if self._hashes is not None:
                self._hashes[entry.path] = entry.stamp, digits

    # --- searching ---

    def search(
        self,
        words: str = "",
        *,
        folder: str = "",
        sort: SortKey = "default",
        descending: bool = False,
        hidden: Hidden = "When searched",
        family: Fits | None = None,
        last: Fits | None = None,
    ) -> list[str]:
        """Return the names of the files that have all words somewhere, in any order and either case.

        A word may be in the path, the alias, the description or the activation text, or begin a known hash. `folder`
        is a path in the user's folders ("style/water"), or begins with the name of one of these ("/Lora/style").
        `family` says which files count at all, and `last` which come after all others.
        """
        wanted = words.casefold().split()
        with self._lock:
            index = self._now()
            if wanted or family or last:
                self._read_notes(index)
            notes = self._notes
            show_hidden = hidden == "Always" or (
                hidden == "When searched" and len(words.strip()) >= _SHORTEST_SEARCH_FOR_HIDDEN
            )
            found = []
            for book in index.books:
                if book.hidden and not show_hidden:
                    continue
                if folder and not self._is_in(book, folder):
                    continue
                noted = notes.get(book.entry.path)
                note = noted[1] if noted else None
                if wanted and not self._has_all(book, note, wanted):
                    continue
                if family is not None and not family(book.entry, note):
                    continue
                found.append((book, last is not None and last(book.entry, note)))
        if sort == "name":
            found.sort(key=lambda item: item[0].entry.path.name.lower())
        elif sort == "date_modified":
            found.sort(key=lambda item: item[0].entry.mtime_ns)
        elif sort == "date_created":
            found.sort(key=lambda item: item[0].created)
        if descending:
            found.reverse()
        found.sort(key=lambda item: item[1])
        return [book.name for book, _ in found]

    def _has_all(self, book: _Book, note: Sidecar | None, wanted: list[str]) -> bool:
        text = book.haystack(note)
        for word in wanted:
            if word in text:
                continue
            if not _HEX.fullmatch(word) or not any(d.startswith(word) for d in self._known_hashes(book.entry)):
                return False
        return True

    def _is_in(self, book: _Book, folder: str) -> bool:
        folder = folder.rstrip("/")
        if folder.startswith("/"):
            return f"/{self._folders[book.top].name}/{book.relative}".startswith(f"{folder}/")
        return book.relative.startswith(f"{folder}/")

    def subfolders(self, *, hidden: bool = True) -> dict[str, int]:
        """Return the folders below the user's own that hold files at any depth, and how many, in order.

        Each is named by its path in the user's folder; two of these may share one.
        """
        counts: Counter[str] = Counter()
        for book in self._now().books:
            if hidden or not book.hidden:
                parent = book.relative.rpartition("/")[0]
                while parent:
                    counts[parent] += 1
                    parent = parent.rpartition("/")[0]
        return {name: counts[name] for name in sorted(counts, key=_natural)}

    def tree(self, *, hidden: bool = True) -> dict[str, int]:
        """Return all folders with files at any depth as "/Lora/style", and how many files lie directly in each."""
        counts: Counter[str] = Counter()
        for book in self._now().books:
            if hidden or not book.hidden:
                place = f"/{self._folders[book.top].name}/{book.relative}".rpartition("/")[0]
                counts[place] += 1
                while (place := place.rpartition("/")[0]) and place not in counts:
                    counts[place] = 0
        return {name: counts[name] for name in sorted(counts, key=lambda name: [_natural(p) for p in name.split("/")])}

    def files_in(self, folder: str) -> list[str]:
        """Return the names of the files directly in a folder of `tree`, in order."""
        return [
            book.name
            for book in self._now().books
            if f"/{self._folders[book.top].name}/{book.relative}".rpartition("/")[0] == folder
        ]

    # --- what lies beside the files ---

    def sidecar(self, entry: Entry) -> Sidecar:
        """Return the notes on a file as they are now; read again only when the .json has changed."""
        path = entry.path
        try:
            stamp = sidecar.sidecar_path(path).stat().st_mtime_ns
        except OSError:
            with self._lock:
                self._notes.pop(path, None)
            return Sidecar()
        with self._lock:
            known = self._notes.get(path)
        if known is not None and known[0] == stamp:
            return known[1]
        notes = sidecar.read(path)
        with self._lock:
            self._notes[path] = stamp, notes
        return notes

    def write_sidecar(self, entry: Entry, notes: Sidecar) -> None:
        """Write the notes on a file; raises OSError."""
        sidecar.write(entry.path, notes)
        with self._lock:
            self._notes.pop(entry.path, None)
        self.sidecar(entry)

    def neighbours(self, entry: Entry) -> frozenset[str]:
        """Return the names of all files in the folder of a file, as they are now."""
        folder = entry.path.parent
        try:
            stamp = folder.stat().st_mtime_ns
            known = self._listings.get(folder)
            if known is None or known[0] != stamp:
                known = stamp, frozenset(path.name for path in folder.iterdir())
                self._listings[folder] = known
        except OSError:
            return frozenset()
        return known[1]

    def _read_notes(self, index: _Index) -> None:
        """Read the notes that were not read yet, or are newer than when they were."""
        if self._notes_are_read:
            return
        folders: dict[Path, list[_Book]] = {}
        for book in index.books:
            folders.setdefault(book.entry.path.parent, []).append(book)
        for folder, books in folders.items():
            names = _json_files(folder)
            for book in books:
                path = book.entry.path
                stamp = names.get(f"{path.stem}.json")
                if stamp is None:
                    self._notes.pop(path, None)
                    continue
                known = self._notes.get(path)
                if known is None or known[0] != stamp:
                    self._notes[path] = stamp, sidecar.read(path)
        self._notes_are_read = True

    # --- the folders ---

    def _open(self) -> None:
        """Make the catalog, or a new one where folders have come or gone."""
        roots = _roots(self._folders)
        if self._catalog is None or roots != self._roots:
            self._roots = roots
            self._looked_at = time.monotonic()
            self._catalog = LoraCatalog(*(root.path for root in roots))
            self._index = None

    def _now(self) -> _Index:
        """Return the index of what the catalog has now: it looks again by itself when a name is unknown."""
        with self._lock:
            entries = self.catalog.entries
            if self._index is None or self._index.entries is not entries:
                self._index = _Index(entries, {root.path: root for root in self._roots}, self._folders)
                self._notes_are_read = False
            return self._index


def _choice(name: str, owners: Sequence[_Book]) -> str:
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


def _composed(text: str) -> str:
    """Return the text with accents composed: macOS hands out file names decomposed, keyboards write them composed."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def _natural(text: str) -> list[tuple[int, str]]:
    """Return a sort key in which `ink 9` comes before `ink 10`."""
    # Each piece is a pair, so that a number never meets a text; digits sort before letters.
    return [
        (int(piece[:18]), piece) if odd else (-1, piece.lower())
        for piece, odd in zip(_DIGITS.split(text), _alternating(), strict=False)
    ]


def _alternating() -> Iterator[bool]:
    while True:
        yield False
        yield True


@functools.lru_cache(maxsize=1 << 16)
def _walk_key(relative: str) -> tuple[list[tuple[int, str]], list[tuple[int, str]]]:
    """Return the sort key of a walk through the folders: a folder's own files come before those of folders in it."""
    folder, _, name = relative.rpartition("/")
    return _natural(folder), _natural(name)


def _json_files(folder: Path) -> dict[str, int]:
    """Return the .json files of a folder with their mtime in ns."""
    found = {}
    try:
        with os.scandir(folder) as listing:
            for item in listing:
                if item.name.endswith(".json"):
                    found[item.name] = item.stat().st_mtime_ns
    except OSError:
        pass
    return found


# --- folders that the catalog does not enter by itself ------------------------------------------------------------


def _roots(folders: Iterable[Path]) -> tuple[_Root, ...]:
    """Return the folders for the catalog: those given that are there, and in them the hidden and the linked ones.

    The catalog leaves both out: a hidden folder may be a tool's, and a link may lead a stranger's prompt out. Here
    the user has put them into the WebUI's own folder, where they have always counted.
    """
    given = [folder for folder in folders if folder.is_dir()]
    found: list[_Root] = []
    entered = {os.path.realpath(folder) for folder in given}
    for top, folder in enumerate(folders):
        if folder in given:
            found.append(_Root(folder, top, ""))
            _add_further(folder, "", top, entered, found)
    return tuple(found)


def _add_further(folder: Path, place: str, top: int, entered: set[str], found: list[_Root]) -> None:
    """Add the hidden and linked folders at any depth that hold LoRA files."""
    waiting = [(folder, place, os.path.realpath(folder))]
    while waiting:
        here, place, real = waiting.pop()
        try:
            with os.scandir(here) as listing:
                folders = sorted((item for item in listing if _is_folder(item)), key=lambda item: item.name)
        except OSError:
            continue
        for item in folders:
            path, below = here / item.name, f"{place}/{item.name}" if place else item.name
            target = os.path.realpath(item.path)
            linked = target != os.path.join(real, item.name)  # noqa: PTH118 -- compares texts of real paths
            if linked and (_holds(target, entered) or any(_holds(known, {target}) for known in entered)):
                continue  # listed at its own place; or it leads to a folder above, which would be endless
            if (linked or item.name.startswith(".")) and _has_files(path):
                entered.add(target)
                found.append(_Root(path, top, below))
            waiting.append((path, below, target))


def _holds(path: str, folders: Iterable[str]) -> bool:
    return any(PurePath(path).is_relative_to(folder) for folder in folders)


def _has_files(folder: Path) -> bool:
    """Return whether there is a LoRA file at any depth, links aside."""
    return any(name.lower().endswith(_SUFFIX) for _, _, names in os.walk(folder) for name in names)


def _is_folder(item: os.DirEntry[str]) -> bool:
    try:
        return item.is_dir()
    except OSError:  # a link to itself
        return False
