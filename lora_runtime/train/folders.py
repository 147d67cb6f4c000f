"""`20_robot/`: pictures, their captions, and how often each is shown.

Folders are read as kohya's trainer reads them: `N_words` under `train_data_dir` and `reg_data_dir` has pictures that
are shown N times an epoch; a text file of a picture's name has its caption, and where there is none, the words are it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lora_runtime.errors import TrainingError
from lora_runtime.train.buckets import place
from lora_runtime.train.config import Config, Subset

__all__ = ["Dataset", "Picture", "find_pictures", "sha256_of"]

_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_NUMBERED = re.compile(r"(\d+)(?:_(.*))?", re.DOTALL)
_ORIENTATION = 0x0112  # EXIF's; from 5 on, width and height are exchanged
_SIDEWAYS = range(5, 9)
_PROBE = (64, 64)


@dataclass(frozen=True)
class Picture:
    """One picture file. `size` is (width, height) as it is seen, turned as its EXIF says.

    `folder` is the name of the folder it is in, `words` what that folder is about, `sha256` of the file's bytes in hex.
    """

    path: Path
    caption: str
    folder: str
    repeats: int
    regularisation: bool
    size: tuple[int, int]
    words: str = ""
    sha256: str = ""


@dataclass(frozen=True)
class Dataset:
    """The pictures of a run, in the order of their folders' and their own names, and a line for what is not used."""

    pictures: tuple[Picture, ...]
    notes: tuple[str, ...] = ()


def find_pictures(config: Config) -> Dataset:
    """Return the pictures that a run trains on, each decoded once to see whether it can be.

    What cannot be used costs only itself, and is a line in `notes`. TrainingError where nothing is left.
    """
    notes: list[str] = []
    subsets = config.subsets or (
        *_subsets(config.train_data_dir, False, notes),
        *(_subsets(config.reg_data_dir, True, notes) if config.reg_data_dir is not None else ()),
    )
    pictures = [picture for subset in subsets for picture in _read_folder(subset, config, notes)]
    shown = [picture for picture in pictures if not picture.regularisation]
    if not shown:
        where = "the folders of [[datasets]]" if config.subsets else str(config.train_data_dir)
        why = f" ({'; '.join(notes[:3])})" if notes else ""
        todo = "put them in a folder named by how often each is shown and what it is, such as 20_robot"
        if not config.subsets and _NUMBERED.fullmatch(config.train_data_dir.name):
            todo = f"give the folder above {config.train_data_dir.name}"
        raise TrainingError(f"{where}: no pictures to train on{why}; {todo}")
    beside = [picture for picture in pictures if picture.regularisation]
    return Dataset((*shown, *_as_many(beside, sum(picture.repeats for picture in shown), notes)), tuple(notes))


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hex; TrainingError where it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise TrainingError(f"{path}: cannot be read ({error.strerror or error})") from error


def _as_many(pictures: Sequence[Picture], count: int, notes: list[str]) -> list[Picture]:
    """Return regularisation pictures with such repeats that they are shown `count` times in all.

    kohya's rule: they are taken in order, with their own repeats, until there are enough, to which the last one may
    bring more; where all of them are too few, each in turn gets one more.
    """
    taken: list[Picture] = []
    missing = count
    for picture in pictures:
        if missing > 0:
            taken.append(picture)
            missing -= picture.repeats
    if left := len(pictures) - len(taken):
        notes.append(f"{left} of {_number(len(pictures), 'regularisation picture')} not used: the others are enough")
    if missing > 0 and taken:
        each, more = divmod(missing, len(taken))
        taken = [replace(p, repeats=p.repeats + each + (place < more)) for place, p in enumerate(taken)]
    return taken


# --- folders -----------------------------------------------------------------------------------------------------


def _listed(folder: Path) -> list[Path]:
    """Return what is in a folder, by name, so that no file system's own order counts; hidden files are left out."""
    try:
        return sorted((path for path in folder.iterdir() if not path.name.startswith(".")), key=lambda path: path.name)
    except OSError as error:
        raise TrainingError(f"{folder}: the folder cannot be read ({error.strerror or error})") from error


def _subsets(base: Path, regularisation: bool, notes: list[str]) -> list[Subset]:
    """Return the folders `N_words` in a folder of them."""
    found = []
    loose = 0
    for path in _listed(base):
        if path.suffix.lower() in _PICTURES and path.is_file():
            loose += 1
        elif path.is_dir():
            match = _NUMBERED.fullmatch(path.name)
            if match is None:
                notes.append(f"{path}: not read; its name has no number in front, such as 20_{path.name}")
            else:
                found.append(Subset(path, int(match[1]), (match[2] or "").strip(), regularisation))
        elif path.is_symlink() and not path.exists():
            notes.append(f"{path}: not read; the link leads nowhere")
    if loose:
        notes.append(
            f"{base}: {_number(loose, 'picture')} directly in it not read; put them in a folder such as 20_robot"
        )
    return found


def _read_folder(subset: Subset, config: Config, notes: list[str]) -> list[Picture]:
    """Return the pictures of one folder."""
    folder, words = subset.image_dir, subset.class_tokens
    if subset.num_repeats < 1:
        notes.append(f"{folder}: not read; its pictures would be shown {subset.num_repeats} times")
        return []
    try:
        paths = _listed(folder)
    except TrainingError as error:
        notes.append(str(error))
        return []
    texts = {path.name: path for path in paths}
    folded = {path.name.casefold(): path for path in reversed(paths)}
    found = []
    without = within = 0
    for path in paths:
        if path.suffix.lower() not in _PICTURES:
            within += path.is_dir()
            continue
        read = _look_at(path, config, notes)
        if read is None:
            continue
        names = [path.stem + ending for ending in config.caption_extension]
        text = next((texts[name] for name in names if name in texts), None)
        text = text or next((folded[name.casefold()] for name in names if name.casefold() in folded), None)
        without += text is None
        caption = words if text is None else _read_caption(text, words, notes)
        size, sha256 = read
        found.append(
            Picture(path, caption, folder.name, subset.num_repeats, subset.is_reg, size, words=words, sha256=sha256)
        )
    if within:
        notes.append(f"{folder}: {_number(within, 'folder')} in it not read; pictures lie directly in a folder N_words")
    if not found:
        notes.append(f"{folder}: no pictures in it")
    elif without and not words:
        notes.append(
            f"{folder}: {without} of {_number(len(found), 'picture')} without a caption, and the folder has no words"
        )
    elif 0 < without < len(found):
        notes.append(f'{folder}: {without} of {_number(len(found), "picture")} without a caption; "{words}" is theirs')
    return found


def _number(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


# --- files -------------------------------------------------------------------------------------------------------


def _look_at(path: Path, config: Config, notes: list[str]) -> tuple[tuple[int, int], str] | None:
    """Return a picture's size as it is seen, and its hash; None, and a note, where it cannot be used."""
    import io

    from PIL import Image, UnidentifiedImageError

    try:
        raw = path.read_bytes()
    except OSError as error:
        notes.append(f"{path}: cannot be read ({error.strerror or error})")
        return None
    try:
        with Image.open(io.BytesIO(raw)) as image:
            width, height = image.size
            if image.getexif().get(_ORIENTATION) in _SIDEWAYS:
                width, height = height, width
            # A JPEG is decoded at an eighth of its size: all of its bytes are read, in a fraction of the time.
            image.draft("RGB", _PROBE)
            image.load()
    except Exception as error:  # decoders raise whatever a broken file makes of them
        why = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
        notes.append(f"{path}: not read; no picture that can be decoded{why}")
        return None
    try:
        place((width, height), config)
    except TrainingError as error:
        notes.append(f"{path}: not read; {error}")
        return None
    return (width, height), hashlib.sha256(raw).hexdigest()


def _read_caption(path: Path, words: str, notes: list[str]) -> str:
    """Return the first line of a caption file; the folder's words, and a note, where there is none to be read."""
    try:
        lines = path.read_bytes().decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        notes.append(f'{path}: not UTF-8; the caption is "{words}" instead')
        return words
    except OSError as error:
        notes.append(f'{path}: cannot be read ({error.strerror or error}); the caption is "{words}" instead')
        return words
    lines = [line.strip() for line in lines]
    if not any(lines):
        notes.append(f'{path}: empty; the caption is "{words}" instead')
        return words
    if any(lines[1:]):
        notes.append(f"{path}: only the first line is read; a caption is one line")
    return lines[0]
