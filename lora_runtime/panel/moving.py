"""LoRA files renamed, moved, put into a bin and taken out of it, each with all that belongs to it, or not at all.

A move is a rename on one volume: nothing is copied, nothing is overwritten, nothing is deleted. The bin is `.lora-bin`
in the folder of LoRAs that the file is in. Each thing in it has a folder of its own, where every file has `.binned`
behind its name, so that no program takes it for a LoRA, and `bin.json` tells where they came from.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from lora_runtime.errors import CatalogError
from lora_runtime.folder import SUFFIX, is_of_folder
from lora_runtime.panel.sidecars import owned
from lora_runtime.sets import SUFFIX as SET_SUFFIX
from lora_runtime.whole_files import read_plain

__all__ = ["BIN", "Binned", "binned", "folders_in", "move_lora", "rename_lora", "restore_lora", "throw_away"]

BIN = ".lora-bin"
_ENDING = ".binned"
_NOTE = "bin.json"
_VERSION = 1
_TOKEN = re.compile(r"\d{8}-\d{6}-[0-9a-f]{8}")
_LATEST = 1e11  # seconds: no date of ours
_MOST_NOTED = 4 << 20  # bytes of a note
_MOST_BYTES = 200  # of a name: side-cars have endings, and the bin adds one
_UNTYPED = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f]')
_DEVICES = re.compile(r"(?:con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³]) *(?:\..*)?", re.IGNORECASE)
_SET = SET_SUFFIX.removesuffix(".txt")
_MODELS = (SUFFIX, ".pt", ".ckpt", ".bin", ".pth", ".gguf")
_lock = threading.Lock()  # what is free when it is looked at is still free when it is taken


@dataclass(frozen=True)
class Binned:
    """Something in a bin: `token` names it, `place` is the path it had in `root`, with "/" and no suffix."""

    token: str
    root: Path
    place: str
    when: float
    files: tuple[str, ...]


def rename_lora(path: Path, name: str) -> Path:
    """Give a LoRA file another name, without ending, and all that belongs to it; return where it is now.

    Raises CatalogError for a name that it cannot have or that is taken, OSError where the system refuses.
    """
    with _lock:
        _check_file(path)
        return _moved(path, path.parent, _checked(name))


def move_lora(path: Path, root: Path, folder: str) -> Path:
    """Move a LoRA file and all that belongs to it into a folder of `root`, "" for that itself; return where it is now.

    Raises as `rename_lora`, and for a folder that is not there.
    """
    with _lock:
        _check_file(path)
        target = root / folder if folder in folders_in(root) else None
        if target is None:
            raise CatalogError(f'there is no folder "{folder}" in {root}; make it first, or choose another', folder)
        return path if target == path.parent else _moved(path, target, path.stem)


def folders_in(root: Path) -> list[str]:
    """Return "" and the folders of a root, with "/", in order; hidden and linked ones left out."""
    found = [""]
    for here, names, _ in os.walk(root):
        names[:] = [name for name in names if not name.startswith(".") and not _is_link(Path(here, name))]
        found += [Path(here, name).relative_to(root).as_posix() for name in names]
    return sorted(found, key=str.casefold)


def throw_away(path: Path, root: Path) -> Binned:
    """Put a LoRA file and all that belongs to it into the bin of its folder `root`; return what is there now.

    Raises CatalogError for a file that is not in `root` or belongs together with its folder, OSError where the system
    refuses.
    """
    with _lock:
        _check_file(path)
        try:
            place = path.with_suffix("").relative_to(root).as_posix()
        except ValueError:
            raise CatalogError(f"{path} is not in {root}") from None
        now = time.time()
        token = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(now))}-{secrets.token_hex(4)}"
        files = _files_of(path)
        bin_folder = root / BIN / token
        bin_folder.mkdir(parents=True)
        note = {"version": _VERSION, "place": place, "when": now, "files": files}
        try:
            # First: whatever stops the rest, it says where the files belong.
            (bin_folder / _NOTE).write_text(json.dumps(note), encoding="utf-8")
            _rename_all([(path.parent / name, bin_folder / (name + _ENDING)) for name in files])
        except BaseException:
            _remove_bin(bin_folder)
            raise
        return Binned(token, root, place, now, tuple(files))


def binned(roots: Iterable[Path]) -> list[Binned]:
    """Return what is in the bins of some folders, the latest first; what cannot be read is left out."""
    found = []
    for root in dict.fromkeys(roots):
        for token in _names(root / BIN):
            if _TOKEN.fullmatch(token) and (one := _read(root, token)) is not None:
                found.append(one)
    return sorted(found, key=lambda one: one.when, reverse=True)


def restore_lora(roots: Iterable[Path], token: str) -> Path:
    """Put all files of something in a bin back where they were; return the LoRA file.

    Raises CatalogError where nothing has this token, or a name is taken by now: then all stay in the bin.
    """
    with _lock:
        found = next((one for one in binned(roots) if one.token == token), None)
        if found is None:
            raise CatalogError("this is in no bin any more; look at the folder", token)
        target = found.root / PurePosixPath(found.place).parent
        real, root = Path(os.path.realpath(target)), Path(os.path.realpath(found.root))
        if not real.is_relative_to(root):  # a link has come in between
            raise CatalogError(f"{target} leads out of {found.root} by now; move the files by hand")
        bin_folder = found.root / BIN / token
        target.mkdir(parents=True, exist_ok=True)
        there = [name for name in found.files if os.path.lexists(bin_folder / (name + _ENDING))]
        _check_free(target, there, PurePosixPath(found.place).name, ())
        _rename_all([(bin_folder / (name + _ENDING), target / name) for name in there])
        _remove_bin(bin_folder)
        return target / found.files[0]


# --- names ------------------------------------------------------------------------------------------------------------


def _checked(name: str) -> str:
    """Return a name that a file may have on every system; raises CatalogError for others."""
    if misfit := _misfit(name):
        raise CatalogError(f'"{name}" is no name for a file: {misfit}; write letters, digits, blanks, . - and _', name)
    return name


def _misfit(name: str) -> str:
    if not name or name != name.strip():
        return "it is empty, or begins or ends with a blank"
    if name[0] == "." or name[-1] == ".":
        return "it begins or ends with a point"
    if _UNTYPED.search(name) or not name.isprintable():
        return "it has characters that no file can have on every system"
    if name.lower().endswith((*_MODELS, _ENDING)):
        return "it has an ending; leave that away"
    if name.lower().endswith(_SET):
        return f'it ends in "{_SET}": with it, a text beside the file would be a set'
    if len(name.encode("utf-8", "surrogatepass")) > _MOST_BYTES:
        return f"it has more than {_MOST_BYTES} bytes"
    return "Windows keeps it for a device" if _DEVICES.fullmatch(name) else ""


def _check_file(path: Path) -> None:
    """Raise CatalogError for a file that cannot go alone."""
    if not path.name.lower().endswith(SUFFIX) or not os.path.lexists(path):
        raise CatalogError(f"{path} is not there any more; refresh the page")
    if is_of_folder(path.stem):
        raise CatalogError(f"{path.name} goes by its folder's name and settings; move the folder {path.parent}")


def _check_free(folder: Path, names: Sequence[str], stem: str, leaving: Iterable[str]) -> None:
    """Raise CatalogError where a file is called as one of `names`, in either case, or would belong to `stem`."""
    gone = set(leaving)
    listed = [name for name in _names(folder) if name not in gone]
    by_case = {name.casefold(): name for name in listed}
    taken = next((by_case[name.casefold()] for name in names if name.casefold() in by_case), None)
    if taken is None:
        taken = next((name for name in owned(stem, listed) if not (folder / name).is_dir()), None)
    if taken is not None:
        raise CatalogError(f"{taken} is in {folder} already, and nothing is overwritten; take another name", stem)


def _check_owned(folder: Path, names: Sequence[str], stem: str, leaving: Iterable[str]) -> None:
    """Raise CatalogError where one of `names` would be another LoRA's there: it would not come along the next time."""
    there = {*_names(folder)} - {*leaving}
    lost = {*names[1:]} - {*owned(stem, [*there, *names])}
    if lost:
        raise CatalogError(f"{min(lost)} would belong to another file in {folder}; take another name", stem)


# --- files ------------------------------------------------------------------------------------------------------------


def _moved(path: Path, folder: Path, stem: str) -> Path:
    """Move a file and what belongs to it into a folder, under a stem; return where it is now."""
    files = _files_of(path)
    made = [stem + name[len(path.stem) :] for name in files]
    if folder != path.parent:
        for name in files:
            if (link := path.with_name(name)).is_symlink() and not link.readlink().is_absolute():
                raise CatalogError(f"{name} is a link that counts from its folder; move the file that it leads to")
    if made != files or folder != path.parent:
        leaving = files if folder == path.parent else []
        _check_free(folder, made, stem, leaving)
        _check_owned(folder, made, stem, leaving)
        _rename_all([(path.parent / old, folder / new) for old, new in zip(files, made, strict=True)])
    return folder / made[0]


def _files_of(path: Path) -> list[str]:
    """Return the names of a LoRA file and of the files that belong to it. A folder called `ink.v2` is nobody's."""
    beside = owned(path.stem, _names(path.parent))
    return [path.name, *(name for name in beside if not path.with_name(name).is_dir())]


def _rename_all(pairs: Sequence[tuple[Path, Path]]) -> None:
    """Rename files, or none of them: where one fails, those before it go back."""
    done: list[tuple[Path, Path]] = []
    try:
        for old, new in pairs:
            # `Ink` for `ink`: where case does not tell files apart, the name that is there is its own.
            if os.path.lexists(new) and not _is_same(old, new):
                raise CatalogError(f"{new} is there already, and nothing is overwritten; take another name")
            old.rename(new)
            done.append((old, new))
    except BaseException as error:
        for before, after in reversed(done):
            with suppress(OSError):
                after.rename(before)
        if isinstance(error, OSError) and error.errno == errno.EXDEV:
            raise CatalogError(f"{old} lies on another volume, and nothing is copied; move it by hand") from error
        raise


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other) and one.name.casefold() == other.name.casefold()
    except OSError:
        return False


def _remove_bin(folder: Path) -> None:
    """Remove the folder of something that was put back, and the bin where it was the last; what is in it stays."""
    with suppress(OSError):
        if _names(folder) == [_NOTE]:
            (folder / _NOTE).unlink()
        folder.rmdir()
        folder.parent.rmdir()


def _read(root: Path, token: str) -> Binned | None:
    """Return what a note says, None where it could lead anywhere but back."""
    try:
        content: Any = json.loads(read_plain(root / BIN / token / _NOTE, _MOST_NOTED))
        place, when, files = content["place"], float(content["when"]), content["files"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError, OverflowError):
        return None
    if (
        not 0 < when < _LATEST
        or content.get("version") != _VERSION
        or not isinstance(place, str)
        or not isinstance(files, list)
        or not files
    ):
        return None
    parts = place.split("/")
    if not all(map(_is_plain, parts)) or not all(isinstance(name, str) and _is_plain(name) for name in files):
        return None
    if files[0].lower() != parts[-1].lower() + SUFFIX or any(name.lower().endswith(SUFFIX) for name in files[1:]):
        return None
    return Binned(token, root, place, when, tuple(files))


def _is_plain(name: str) -> bool:
    """Return whether a text is the name of something in a folder, and no way out of it."""
    if os.name == "nt" and (not name.strip(". ") or re.search(r"[\\:]", name)):
        return False
    return name not in ("", ".", "..") and "/" not in name and "\0" not in name


def _names(folder: Path) -> list[str]:
    """Return the names in a folder, in order; none where it cannot be listed."""
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208 -- names alone
    except OSError:
        return []


def _is_link(path: Path) -> bool:
    return os.path.realpath(path) != os.path.join(os.path.realpath(path.parent), path.name)  # noqa: PTH118
