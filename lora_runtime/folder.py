"""The LoRA files of one folder and everything below it: found, told apart, and remembered.

Links may lead anywhere, unless the catalog is told to keep them in: a link is what its owner put there, to keep one
copy for several programs. A linked folder is entered once, and not where what it shows is listed at its own place, so
that there are no loops.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from lora_runtime.errors import CatalogError, CorruptFileError, LoraFileError, RefusedFileError
from lora_runtime.file_index import FileFacts, load_facts, save_facts
from lora_runtime.foreign import UNFINISHED, kind_of
from lora_runtime.header import PICKLE_SUFFIXES, Hashes, hashes, read_header, reason_of
from lora_runtime.metadata import algorithms, family

__all__ = ["SUFFIX", "Entry", "LoraFolder", "Refusal", "entry_of", "is_of_folder", "name_of", "newest", "stamp_of"]

SUFFIX = ".safetensors"
# PEFT's, MLX-LM's and diffusers' names for every file that they save.
_STEMS_OF_FOLDERS = ("adapter_model", "adapters", "pytorch_lora_weights", "pytorch_lora_weights_bf16")
_CACHED = "models--"  # "models--OWNER--NAME/snapshots/COMMIT/…" in the cache of huggingface_hub
_UNFINISHED = tuple(SUFFIX + ending for ending in UNFINISHED)


@dataclass(frozen=True)
class Entry:
    """A file that a prompt can name: `relative` is its path in `folder`, with `/` and without the suffix.

    `alias` is its ss_output_name; `family`, `algorithms` and `ranks` are guesses as in `metadata.Description`.
    """

    name: str
    path: Path
    relative: str
    folder: Path
    alias: str | None
    size: int
    mtime_ns: int
    family: str
    algorithms: tuple[str, ...]
    ranks: tuple[int, ...]

    @property
    def stamp(self) -> tuple[int, int]:
        """Size and mtime: another content has another stamp."""
        return self.size, self.mtime_ns


@dataclass(frozen=True)
class Refusal:
    """A file, link or folder that cannot be used; `is_link` where it leads somewhere else."""

    path: Path
    reason: str
    is_link: bool = False


class LoraFolder:
    """One folder; remembers what it has read of each file, between runs too."""

    def __init__(self, path: Path) -> None:
        """Take a folder; raises CatalogError where it is not there. Reads nothing."""
        self.path = path
        self.real = os.path.realpath(path)
        self._facts: dict[str, FileFacts] | None = None
        self._unsaved = False
        _check_folder(path)

    def scan(self, roots: tuple[str, ...], links_out: bool) -> tuple[list[Entry], list[Refusal]]:
        """Return what is there now; `links_out`: whether links may leave these real paths.

        Only files that are new or changed are read. Raises CatalogError where the folder itself cannot be listed.
        """
        _check_folder(self.path)
        old = load_facts(self.real) if self._facts is None else self._facts
        facts: dict[str, FileFacts] = {}
        entries: list[Entry] = []
        refusals: list[Refusal] = []
        try:
            for found in _walk(self.path, self.real, roots, links_out=links_out):
                if isinstance(found, Refusal):
                    refusals.append(found)
                    continue
                key, stamp = found
                known: FileFacts | Refusal | None = old.get(key)
                if not isinstance(known, FileFacts) or known.stamp != stamp:
                    known = _read(self.path / key, *stamp)
                if isinstance(known, Refusal):
                    refusals.append(known)
                    continue
                facts[key] = known
                if known.refusal is None:
                    entries.append(self._entry(key, known))
                else:
                    refusals.append(Refusal(self.path / key, known.refusal))
        except BaseException:
            # Thousands of new files take a while: what was read before an interruption is kept.
            save_facts(self.real, old | facts)
            raise
        self._facts, self._unsaved = facts, facts != old
        self.save()
        return entries, refusals

    def unchanged(self, entry: Entry, roots: tuple[str, ...] | None) -> bool:
        """Return whether the file is still as it was when it was scanned, and within `roots` (None: anywhere)."""
        same = stamp_of(entry.path) == entry.stamp
        return same and (roots is None or _is_inside(os.path.realpath(entry.path), roots))

    def known_hashes(self, entry: Entry) -> Hashes | None:
        """Return the hashes of the file as it was at the last scan, if they were computed before."""
        facts = (self._facts or {}).get(_key(entry))
        if facts is None or facts.stamp != entry.stamp or facts.sha256 is None or facts.sha256_of_tensors is None:
            return None
        return Hashes(facts.sha256, facts.sha256_of_tensors)

    def hashes(self, entry: Entry) -> Hashes:
        """Return the hashes of the file as it is now, and remember them; raises LoraFileError.

        `save` keeps them for other processes.
        """
        known = self.known_hashes(entry)
        if known and stamp_of(entry.path) == entry.stamp:
            return known
        found = hashes(entry.path)
        facts = (self._facts or {}).get(_key(entry))
        # The stamp is looked at after the hashing: a file that changed meanwhile has another one.
        if self._facts is not None and facts is not None and facts.settled and facts.stamp == stamp_of(entry.path):
            self._facts[_key(entry)] = replace(facts, **vars(found))
            self._unsaved = True
        return found

    def save(self) -> None:
        """Write what is new to the user's cache folder, if that is possible."""
        if self._unsaved:
            save_facts(self.real, self._facts or {})
            self._unsaved = False

    def _entry(self, key: str, facts: FileFacts) -> Entry:
        path = self.path / key
        return _made(facts, name=name_of(path), path=path, relative=key[: -len(SUFFIX)], folder=self.path)


def entry_of(name: str, path: Path, stamp: tuple[int, int]) -> Entry | Refusal:
    """Return the entry of one file, wherever it lies, under a name that somebody gives it; or why it has none."""
    facts = _read(path, *stamp)
    if isinstance(facts, Refusal) or facts.refusal is not None:
        return facts if isinstance(facts, Refusal) else Refusal(path, facts.refusal or "")
    return _made(facts, name=name, path=path, relative=name, folder=path.parent)


def _made(facts: FileFacts, *, name: str, path: Path, relative: str, folder: Path) -> Entry:
    return Entry(
        name=name,
        path=path,
        relative=relative,
        folder=folder,
        alias=facts.alias,
        size=facts.size,
        mtime_ns=facts.mtime_ns,
        family=facts.family,
        algorithms=facts.algorithms,
        ranks=facts.ranks,
    )


def _check_folder(path: Path) -> None:
    if not path.is_dir():
        what = "is a file; give the folder that it is in" if path.exists() else "does not exist"
        raise CatalogError(f"the LoRA folder {path} {what}")


def name_of(path: Path) -> str:
    """Return the name of a file: its stem, or its folder's name where its stem is the same for all such files.

    In the cache of huggingface_hub the folder is called by a commit; the repository has the name.
    """
    if not (is_of_folder(path.stem) and path.parent.name):
        return path.stem
    repository = path.parent.parent.parent.name
    if path.parent.parent.name == "snapshots" and repository.startswith(_CACHED):
        return repository.rpartition("--")[2]
    return path.parent.name


def newest(entries: list[Entry]) -> list[Entry]:
    """Return the entries without older revisions of the same file in the cache of huggingface_hub.

    refs/main of a repository there has the commit that it was last asked for without naming one.
    """
    if len(entries) < 2:
        return entries
    revisions = [_revision(entry.path) for entry in entries]
    main = {revision[:2] for revision in revisions if revision is not None and _main(revision[0]) == revision[2]}
    return [
        entry
        for entry, revision in zip(entries, revisions, strict=True)
        if revision is None or revision[:2] not in main or _main(revision[0]) == revision[2]
    ]


def _revision(path: Path) -> tuple[Path, str, str] | None:
    """Return the repository's folder, the path in it and the commit of a file in the cache of huggingface_hub."""
    here = path.absolute()
    for commit in here.parents:
        repository = commit.parent.parent
        if commit.parent.name == "snapshots" and repository.name.startswith(_CACHED):
            return repository, str(here.relative_to(commit)), commit.name
    return None


def _main(repository: Path) -> str:
    """Return the commit that a repository's main branch was at; "" where that is not known."""
    try:
        with (repository / "refs" / "main").open("rb") as file:
            return file.read(100).decode("ascii", "replace").strip()
    except OSError:
        return ""


def is_of_folder(stem: str) -> bool:
    """Return whether a stem is what a program calls every file that it saves, each in a folder of its own."""
    return stem in _STEMS_OF_FOLDERS


def _key(entry: Entry) -> str:
    """Return the file's path in its folder, with its suffix as it is spelled there."""
    return entry.relative + entry.path.suffix


def stamp_of(path: Path) -> tuple[int, int] | None:
    """Return size and mtime of a file as it is now; None where it cannot be looked at."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _is_inside(real: str, roots: tuple[str, ...]) -> bool:
    return any(PurePath(real).is_relative_to(root) for root in roots)


def _read(path: Path, size: int, mtime_ns: int) -> FileFacts | Refusal:
    """Return what the header tells; a Refusal, which is not remembered, where the file could not be opened."""
    try:
        header = read_header(path)
    except (CorruptFileError, RefusedFileError) as error:
        return FileFacts(size, mtime_ns, refusal=reason_of(error, path))
    except LoraFileError as error:
        return Refusal(path, reason_of(error, path))
    alias = header.metadata.get("ss_output_name") or None
    counts, ranks = algorithms(header)
    if not counts and (kind := kind_of(header.tensors)):
        return FileFacts(size, mtime_ns, refusal=f"this is {kind}")
    return FileFacts(size, mtime_ns, alias, family(header), tuple(counts), ranks)


def _walk(
    folder: Path, real: str, roots: tuple[str, ...], *, links_out: bool
) -> Iterator[tuple[str, tuple[int, int]] | Refusal]:
    """Yield (path within `folder` with `/`, stamp) of each safetensors file in a fixed order, and what is refused.

    Hidden files and folders are left out: macOS keeps a `._ink.safetensors` beside each file on foreign disks.
    """
    # Path within the folder, real path, and the real paths of the linked folders that lead there, with the first.
    waiting: list[tuple[str, str, tuple[str, ...]]] = [("", real, (real,))]
    linked: set[str] = set()
    while waiting:
        prefix, here, above = waiting.pop()
        try:
            with os.scandir(folder / prefix) as listing:
                items = sorted(listing, key=lambda item: item.name)
        except OSError as error:
            if not prefix:
                raise CatalogError(f"the LoRA folder {folder} cannot be listed: {error.strerror}") from error
            yield Refusal(folder / prefix, f"this folder cannot be listed: {error.strerror}")
            continue
        folders = []
        for item in items:
            key = prefix + item.name
            suffix = "." + item.name.rpartition(".")[2].lower()
            if item.name.startswith("."):
                continue
            if _is_folder(item):
                # Not is_symlink: a junction on Windows is none, and leads away as well.
                target = os.path.realpath(item.path)
                if target == str(Path(here, item.name)):
                    folders.append((f"{key}/", target, above))
                elif _is_inside(target, (*roots, *linked)):
                    continue  # what it shows is listed at its own place
                elif not links_out:
                    yield _link_out(item, target)
                elif any(_is_inside(each, (target,)) for each in above):
                    yield Refusal(Path(item.path), f"a link to {target}, which this folder lies in", is_link=True)
                else:
                    linked.add(target)
                    folders.append((f"{key}/", target, (*above, target)))
            elif suffix in PICKLE_SUFFIXES:
                yield Refusal(folder / key, f"{suffix} files are pickles, which can run code when read; never opened.")
            elif key.lower().endswith(_UNFINISHED):
                yield Refusal(folder / key, "this download is not finished; wait for it, or start it again")
            elif suffix == SUFFIX:
                found = _file(item, None if links_out else roots)
                yield found if isinstance(found, Refusal) else (key, found)
        waiting += reversed(folders)


def _is_folder(item: os.DirEntry[str]) -> bool:
    try:
        return item.is_dir()
    except OSError:  # a link to itself
        return False


def _file(item: os.DirEntry[str], roots: tuple[str, ...] | None) -> tuple[int, int] | Refusal:
    """Return the file's stamp, or why it is refused; a link stays within `roots` unless they are None."""
    try:
        if roots is not None and item.is_symlink():
            target = os.path.realpath(item.path)
            if not _is_inside(target, roots):
                return _link_out(item, target)
        status = item.stat()
    except OSError as error:
        if item.is_symlink():
            return Refusal(Path(item.path), "a link that leads nowhere", is_link=True)
        return Refusal(Path(item.path), f"cannot be read: {error.strerror}")
    if not stat.S_ISREG(status.st_mode):
        return Refusal(Path(item.path), "not a regular file")
    return status.st_size, status.st_mtime_ns


def _link_out(item: os.DirEntry[str], target: str) -> Refusal:
    reason = f"a link to {target}, which is outside the folder; add the folder that it leads to instead"
    return Refusal(Path(item.path), reason, is_link=True)
