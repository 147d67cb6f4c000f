"""Names to files: which file `<lora:watercolor>` means.

A name is looked up among the files that are there, never joined to a path, so it cannot lead out of the folders.

Of 10,000 files with 60 keys each in 100 folders, a first listing takes 4.1 s of one core's time, the first of a later
process 0.21 s, a rescan 0.13 s, a name under 1 ms, an unknown name 0.34 s with its rescan and suggestions. A file with
800 keys takes 2.5 ms to read the first time.
"""

from __future__ import annotations

import os
import re
import threading
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType

from lora_runtime.errors import AmbiguousLoraError, LoraError, LoraFileError, UnknownLoraError
from lora_runtime.expert_pairs import Pair, pairs_of
from lora_runtime.folder import SUFFIX, Entry, LoraFolder, Refusal, is_of_folder, newest
from lora_runtime.foreign import UNFINISHED
from lora_runtime.header import Hashes, read_header
from lora_runtime.named_files import NamedFiles

__all__ = ["Entry", "LoraCatalog"]

_DEFAULT_FOLDERS = ("models/Lora", "loras")
_HASH = re.compile(r"#[0-9a-fA-F]{8,64}")
_SHORT_HASH = re.compile(r"#[0-9a-fA-F]{0,7}")
_UNTYPED = re.compile("[:>]")  # what ends a field or a tag
_DIVIDERS = re.compile(r"[ _-]+")
_ESCAPED = re.compile(r"\\([()\[\]{}])")
_SHOWN_DIGITS = 12  # as the WebUI shows a hash
_NAME_IT = 'loras={"NAME": PATH} gives a file elsewhere a name'


class LoraCatalog:
    """The LoRA files in some folders and everything below them, found by name.

    Nothing is read before the first question; then only headers, and of known files not even these. Safe to use from
    several threads.
    """

    def __init__(
        self,
        *folders: str | os.PathLike[str],
        files: Mapping[str, str | os.PathLike[str]] | None = None,
        links_out: bool = True,
    ) -> None:
        """Take the folders, the first ones first; raises CatalogError for one that is not there.

        `files` are single files anywhere, by the names that they are to have here, which come before all others.
        Links to files and folders may lead anywhere, for people who keep one copy for several programs, and as in the
        cache of huggingface_hub. Where others can write into the folders, `links_out=False` keeps links inside.
        """
        self._folders = {path: LoraFolder(path) for path in map(Path, folders)}
        self._files = NamedFiles(files or {})
        self._roots = tuple(folder.real for folder in self._folders.values())
        self._links_out = links_out
        self._lock = threading.RLock()
        self._scanned = False
        self._entries: tuple[Entry, ...] = ()
        self._refusals: tuple[Refusal, ...] = ()
        self._refused_files: Mapping[str, Refusal] = {}  # by the name that the caller gives them
        # By the caller's name, by relative path, by name, by alias, by a stem that all such files have: the first that
        # knows a name decides.
        self._levels: tuple[dict[str, list[Entry]], ...] = ()
        self._pairs: dict[str, list[Pair]] | None = None  # by names whose dividers count as one; made when asked for
        self._loose: dict[str, list[Entry]] | None = None  # by names whose dividers count as one; made when asked for

    @classmethod
    def default(cls) -> LoraCatalog:
        """Return the catalog of `default_folders`."""
        return cls(*cls.default_folders())

    @staticmethod
    def default_folders() -> tuple[str, ...]:
        """Return the folders of LORA_RUNTIME_PATH (separated as PATH is), else models/Lora and loras if there."""
        if given := os.environ.get("LORA_RUNTIME_PATH"):
            return tuple(filter(None, given.split(os.pathsep)))
        return tuple(folder for folder in _DEFAULT_FOLDERS if Path(folder).is_dir())

    @property
    def folders(self) -> tuple[Path, ...]:
        """The folders as they were given."""
        return tuple(self._folders)

    @property
    def files(self) -> Mapping[str, Path]:
        """The single files, by the names that the caller gave them."""
        return MappingProxyType(self._files.files)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The usable files, those that have a name from the caller first, then by folder and path.

        Raises CatalogError where a folder has gone.
        """
        with self._lock:
            self._scan_once()
            return self._entries

    @property
    def refused(self) -> Mapping[Path, str]:
        """The files that are there and cannot be used, each with its reason."""
        with self._lock:
            self._scan_once()
            refusals = (*self._refused_files.values(), *self._refusals)
            return MappingProxyType({refusal.path: refusal.reason for refusal in refusals})

    def refresh(self) -> None:
        """Look at the folders again; files that have not changed are not read again."""
        with self._lock:
            self._scan()

    def resolve(self, name: str, *, look_again: bool = True, suggest: bool = True) -> Entry:
        """Return the file that `name` means, as it is now.

        A name is one that the caller gave to a file, a path in a folder (`style/ink`), a stem (`ink`; of files that
        programs call alike, the name of their folder), an alias, or `#` and 8 or more digits of one of the file's
        hashes; the first of these that fits decides. Upper and lower case differ; where nothing fits, blanks,
        underscores and hyphens count as one, which `is_loose` tells. Of several revisions in the cache of
        huggingface_hub the repository's newest counts. Before it fails, the folders are looked through once more, so
        that a new file works at once; `look_again=False` is for a caller who has just had that done. `suggest` says
        whether the error names what comes near, which takes 0.2 s with 10,000 files.

        Raises AmbiguousLoraError, UnknownLoraError, or, where the name is that of a file which cannot be used,
        RefusedFileError, CorruptFileError or LoraFileError.
        """
        with self._lock:
            fresh = self._scan_once()
            found = self._find(name)
            if not fresh and (look_again or found) and not self._is_one(found):
                self._scan()
                found = self._find(name)
            if len(found) == 1:
                return found[0]
            raise self._ambiguous(name, found) if found else self._unknown(name, suggest)

    def pair(self, name: str) -> Pair | None:
        """Return the files for the two denoisers of Wan 2.2 that a name means together, where no file has the name.

        style_high_noise and style_low_noise are "style"; `expert_pairs` says what else they may be called. Raises
        AmbiguousLoraError where several pairs have the name.
        """
        with self._lock:
            self._scan_once()
            pair = self._pair(name)
            if pair is not None and not all(self._is_one([entry]) for entry in pair):
                self._scan()
                pair = self._pair(name)
            return pair

    def is_loose(self, name: str) -> bool:
        """Return whether a name means a file only where blanks, underscores and hyphens count as one."""
        with self._lock:
            spelled = _spellings(name)
            exact = any(spelling in level for level in self._levels for spelling in spelled)
            return not exact and not _HASH.fullmatch(name) and bool(self._found_loosely(name))

    def hashes(self, entry: Entry) -> Hashes:
        """Return the hashes of a file of this catalog, computed once and remembered while it is unchanged.

        Raises LoraFileError where it cannot be read.
        """
        if self._files.owns(entry):
            return self._files.hashes(entry)
        folder = self._folders[entry.folder]
        found = folder.hashes(entry)  # without the lock: a large file takes seconds, and others want to know names
        with self._lock:
            folder.save()
        return found

    def known_hashes(self, entry: Entry) -> Hashes | None:
        """Return the hashes of a file of this catalog if they were computed before for this content; reads nothing."""
        with self._lock:
            return self._home(entry).known_hashes(entry)

    # --- the files ---

    def _scan_once(self) -> bool:
        """Scan if that was not done yet; return whether it was done now."""
        if self._scanned:
            return False
        self._scan()
        return True

    def _scan(self) -> None:
        named, self._refused_files = self._files.scan()
        entries: list[Entry] = []
        refusals: list[Refusal] = []
        for folder in self._folders.values():
            usable, refused = folder.scan(self._roots, self._links_out)
            entries += usable
            refusals += refused
        self._entries, self._refusals = (*named, *entries), tuple(refusals)
        self._levels = (
            _by_name((entry.relative, entry) for entry in named),
            _by_name((entry.relative, entry) for entry in entries),
            _by_name((entry.name, entry) for entry in entries),
            _by_name((entry.alias, entry) for entry in entries if entry.alias),
            _by_name((name, entry) for entry in entries for name in _names_of_folder(entry)),
            # A tag has no blanks around its name; a file may.
            _by_name((name.strip(), entry) for entry in entries for name in (entry.relative, entry.name)),
        )
        self._loose = self._pairs = None
        self._scanned = True

    def _home(self, entry: Entry) -> LoraFolder | NamedFiles:
        """Return what an entry is of."""
        return self._files if self._files.owns(entry) else self._folders[entry.folder]

    def _is_one(self, found: list[Entry]) -> bool:
        if len(found) != 1:
            return False
        if self._files.owns(found[0]):
            return self._files.unchanged(found[0])
        return self._folders[found[0].folder].unchanged(found[0], None if self._links_out else self._roots)

    # --- looking up ---

    def _find(self, name: str) -> list[Entry]:
        """Return the files that the first level which knows the name has under it; one file twice counts once."""
        if name in self._refused_files:  # another file of that name is not meant
            return []
        if _HASH.fullmatch(name):
            return self._find_by_hash(name[1:].lower())
        for level in self._levels:
            for spelling in _spellings(name):
                if found := level.get(spelling):
                    return _distinct(newest(found))
        return _distinct(newest(self._found_loosely(name)))

    def _found_loosely(self, name: str) -> list[Entry]:
        """Return the files whose name is this one where blanks, underscores and hyphens count as one."""
        if self._loose is None:
            named = ((name, entry) for level in self._levels for name, found in level.items() for entry in found)
            self._loose = _by_name((_loosened(name), entry) for name, entry in named)
        return self._loose.get(_loosened(_spellings(name)[2]), [])

    def _pair(self, name: str) -> Pair | None:
        if self._pairs is None:
            self._pairs = {}
            for known, pair in pairs_of(self._entries):
                self._pairs.setdefault(_loosened(_composed(known)), []).append(pair)
        found = [] if _HASH.fullmatch(name) else self._pairs.get(_loosened(_spellings(name)[2]), [])
        if not found or self._find(name):
            return None
        if len(found) > 1:
            candidates = tuple(entry.relative for pair in found for entry in pair)
            raise AmbiguousLoraError(
                f"{_quoted(name)} fits {len(found)} pairs of files in {self._where()}; give the path of one, or name "
                f"its two files: {_listed(candidates, 'and')}",
                name,
                candidates,
            )
        return found[0]

    def _find_by_hash(self, prefix: str) -> list[Entry]:
        """Return the files with this hash; of equal ones the first.

        Files are hashed only until one has it: at 8 digits the chance that an unread file has it too is one in
        4,000,000,000, and reading all of them takes minutes.
        """
        found: dict[str, Entry] = {}
        for entry in self._entries:
            known = self._home(entry).known_hashes(entry)
            if known and _has_prefix(known, prefix):
                found.setdefault(known.sha256, entry)
        return list(found.values()) or self._hash_until(prefix)

    def _hash_until(self, prefix: str) -> list[Entry]:
        try:
            for entry in self._entries:
                folder = self._home(entry)
                try:
                    if not folder.known_hashes(entry) and _has_prefix(folder.hashes(entry), prefix):
                        return [entry]
                except LoraFileError:  # gone or changed since the scan: not the one that is meant
                    continue
        finally:
            for folder in self._folders.values():
                folder.save()
        return []

    # --- what to say ---

    def _ambiguous(self, name: str, found: list[Entry]) -> AmbiguousLoraError:
        candidates = tuple(dict.fromkeys(map(self._unique_name, found)))
        return AmbiguousLoraError(
            f"{_quoted(name)} fits {len(found)} files in {self._where()}; write one of "
            f"{_listed(map(self._typed, candidates), 'or', quote=str)}",
            name,
            candidates,
        )

    def _unique_name(self, entry: Entry) -> str:
        """Return what a user can write to mean this file alone: its path, or its hash where two folders share that."""
        if len(self._find(entry.relative)) == 1:
            return entry.relative
        return f"#{self.hashes(entry).sha256_of_tensors[:_SHOWN_DIGITS]}"

    def _unknown(self, name: str, suggest: bool) -> LoraError:
        """Return the error for a name that no usable file has."""
        if (refusal := self._refused_files.get(name)) is not None:
            return _refused_file(name, refusal)
        if problem := _escape(name):
            return UnknownLoraError(f"{_quoted(name)} is no name of a LoRA: {problem}", name)
        for refusal in self._refusals:
            if _names_file(name, refusal.path):
                return _refused(name, refusal)
        near = self._nearest(name) if suggest else ()
        text = f"no LoRA named {_quoted(name)} in {self._where()}"
        if not self._folders and not self._files.files:
            text += "; make models/Lora or loras here, or set LORA_RUNTIME_PATH"
        else:
            text += f" ({len(self._entries):,} file{'' if len(self._entries) == 1 else 's'})"
        if _SHORT_HASH.fullmatch(name):
            text += ". A hash needs 8 or more digits"
        if name.startswith("."):
            text += '. Files and folders that begin with "." are left out'
        if near:
            text += f". Did you mean {_listed(map(self._typed, near), 'or', quote=str)}?"
        return UnknownLoraError(text, name, near)

    def _typed(self, name: str) -> str:
        """Return a name in quotes as a tag can say it; of one that no tag can say, the file's hash beside it."""
        if not _UNTYPED.search(name) and name == name.strip() and name.isprintable():
            return _quoted(name)
        found = self._find(name)
        try:
            known = self.hashes(found[0]).sha256_of_tensors[:_SHOWN_DIGITS]
        except (IndexError, LoraFileError):  # gone or changed since the scan
            return _quoted(name)
        return f'"#{known}" (the file {_quoted(name)}, which no tag can name)'

    def _nearest(self, name: str) -> tuple[str, ...]:
        """Return up to three names like this one, one for each file; those that differ in case only come alone."""
        spelled: dict[str, list[str]] = {}
        for level in self._levels:
            for known in level:
                spelled.setdefault(known.casefold(), []).append(known)
        wanted = _spellings(name)[2].casefold()
        near = [wanted] if wanted in spelled else get_close_matches(wanted, spelled, n=3 * len(self._levels))
        one_each: dict[tuple[Path, ...], str] = {}
        for known in dict.fromkeys(known for folded in near for known in spelled[folded]):
            one_each.setdefault(tuple(entry.path for entry in self._find(known)), known)
        return tuple(one_each.values())[:3]

    def _where(self) -> str:
        where = [*map(_shown, self._folders), *(["the files with a name of their own"] if self._files.files else [])]
        return _listed(where, "and", quote=str) or "any folder"


def _distinct(entries: list[Entry]) -> list[Entry]:
    """Return the entries, one for each file."""
    return list({os.path.realpath(entry.path): entry for entry in reversed(entries)}.values())[::-1]


def _loosened(name: str) -> str:
    """Return a name with one blank for whatever divides its words: people mix blanks, underscores and hyphens."""
    return _DIVIDERS.sub(" ", name)


def _names_of_folder(entry: Entry) -> tuple[str, ...]:
    """Return what else a file may be called that goes by its folder's name: the folder's path, and its own stem."""
    folder, _, stem = entry.relative.rpartition("/")
    return (folder, stem) if is_of_folder(stem) and folder else (stem,) if is_of_folder(stem) else ()


def _by_name(pairs: Iterable[tuple[str, Entry]]) -> dict[str, list[Entry]]:
    names: dict[str, list[Entry]] = {}
    for name, entry in pairs:
        names.setdefault(_composed(name), []).append(entry)
    return names


def _composed(text: str) -> str:
    """Return the text with accents composed: macOS hands out file names decomposed, keyboards write them composed."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def _spellings(name: str) -> list[str]:
    """Return the name as written, tidied (`/` for a backslash, no `.` or empty parts), and without or with its suffix.

    Tidied too: brackets that are escaped, as people copy them from a prompt.
    """
    name = _composed(name)
    first, *rest = _ESCAPED.sub(r"\1", name).replace("\\", "/").split("/")
    tidy = "/".join([first, *(part for part in rest if part not in ("", "."))]).removeprefix("./")
    return [name, tidy, tidy[: -len(SUFFIX)] if tidy.lower().endswith(SUFFIX) else tidy, tidy + SUFFIX]


def _escape(name: str) -> str:
    """Return how a name tries to leave the folders, or ""."""
    if "\0" in name:
        return "it contains a NUL"
    if re.match(r"[/\\]|[A-Za-z]:", name):
        return f"it is an absolute path, and names are paths within the folders; {_NAME_IT}"
    return "it leads out of the folders with '..'" if ".." in re.split(r"[/\\]", name) else ""


def _names_file(name: str, path: Path) -> bool:
    """Return whether `name` means this refused file: the end of its path, with or without its one or two suffixes."""
    wanted = tuple(_spellings(name)[1].split("/"))
    bare = path.with_suffix("")
    return any(
        tuple(map(_composed, spelled.parts[-len(wanted) :])) == wanted
        for spelled in (path, bare, *([bare.with_suffix("")] if bare.suffix.lower() == SUFFIX else []))
    )


def _refused(name: str, refusal: Refusal) -> LoraError:
    """Return the error for the name of a file that is there and cannot be used."""
    if refusal.is_link:
        return UnknownLoraError(f"{_quoted(name)} is no usable LoRA: {refusal.path} is {refusal.reason}", name)
    if not refusal.path.name.lower().endswith(UNFINISHED):
        try:
            read_header(refusal.path)
        except LoraFileError as error:
            return error
    return LoraFileError(f"{refusal.path}: {refusal.reason}")


def _refused_file(name: str, refusal: Refusal) -> LoraError:
    """Return the error for a file with a name from the caller that cannot be used."""
    if refusal.path.is_file():
        return _refused(name, refusal)
    return UnknownLoraError(f"{_quoted(name)} is to be the file {refusal.path}: {refusal.reason}", name)


def _has_prefix(hashes: Hashes, prefix: str) -> bool:
    return hashes.sha256.startswith(prefix) or hashes.sha256_of_tensors.startswith(prefix)


def _shown(folder: Path) -> str:
    """Return a folder as seen from here where it lies below."""
    here = Path.cwd()
    return str(folder.relative_to(here)) if folder.is_relative_to(here) else str(folder)


def _quoted(name: str) -> str:
    """Return a name in quotes and on one line."""
    return '"' + "".join(char if char.isprintable() else ascii(char)[1:-1] for char in name) + '"'


def _listed(names: Iterable[str], joint: str, quote: Callable[[str], str] = _quoted) -> str:
    """Return `a, b or c`."""
    *most, last = [quote(name) for name in names] or [""]
    return f"{', '.join(most)} {joint} {last}" if most else last
