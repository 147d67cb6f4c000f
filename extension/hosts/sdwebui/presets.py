"""Block weights by name: the common ones, those of sd-webui-lora-block-weight if it is there, and the user's own.

The user's own are in `lora_runtime_presets.txt`, in the format of lbwpresets.txt: in a folder of LoRAs, where the panel
saves them, and in the WebUI's data folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from modules import paths

from lora_runtime.panel.presets import FILE
from lora_runtime.prompt.presets import common_presets, load_presets

from ...console import say
from .folders import lora_folders

_OF_BLOCK_WEIGHT = ("lbwpresets.txt", "elempresets.txt")


class Presets:
    """All presets, read again when a file has changed; call it for the table. Later files win."""

    def __init__(self) -> None:
        self._folders = lora_folders()  # of the command line: it does not change
        self._stamps: dict[Path, tuple[int, int]] | None = None
        self._known: Mapping[str, str] = {}

    def __call__(self) -> Mapping[str, str]:
        """Return the lists and rules by name."""
        stamps = {path: stamp for path in _files(self._folders) for stamp in [_stamp(path)] if stamp}
        if stamps != self._stamps:
            self._stamps, self._known = stamps, _read(stamps)
        return self._known


def _stamp(path: Path) -> tuple[int, int] | None:
    """Return what changes when a file is written again, or None where it is gone."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def _files(folders: Sequence[Path]) -> list[Path]:
    data = Path(paths.data_path)
    beside = [
        path
        for folder in sorted((data / "extensions").glob("*lora-block-weight*"))
        for name in _OF_BLOCK_WEIGHT
        for path in [folder / "scripts" / name]
    ]
    saved = [folder / FILE for folder in reversed(folders)]  # of two of one name the first folder's counts
    return [path for path in [*beside, *saved, data / FILE] if path.is_file()]


def _read(files: Mapping[Path, object]) -> Mapping[str, str]:
    found = dict(common_presets())
    for path in files:
        try:
            presets, reasons = load_presets(path)
        except OSError as error:
            say(f"{path} cannot be read: {error.strerror}")
            continue
        found |= presets
        for reason in reasons if path.name == FILE else ():  # the other's file is its own business
            say(f"{path}: {reason}")
    return found
