"""Tags to files: what each tag asks for, with the file that it means."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from lora_runtime.catalog import Entry
from lora_runtime.errors import LoraError
from lora_runtime.lora import Lora, outline
from lora_runtime.lora_cache import LoraCache
from lora_runtime.prompt import Diagnostic, LoraTag
from lora_runtime.prompt.strength import Curve
from lora_runtime.prompt.tags import Severity
from lora_runtime.regions import Place, find_place
from lora_runtime.requests import Request, request_of
from lora_runtime.stage import Side
from lora_runtime.wildcards import is_wildcard

from ..library.patience import Patience
from ..library.shelf import Shelf
from ..prompts.notices import Notice, notice_of
from .judging import told

__all__ = ["Loader", "sha256_of"]

_log = logging.getLogger("lora_runtime")

_USUAL_STRENGTH = 4.0  # files that are made to be pushed go to 3
_MOST_STRENGTH = 100.0
_MOST_FILES = 50  # that a prompt which is only asked about may name: a header can have 100 MB
_UNREAD = "not read: "


def sha256_of(lora: Lora) -> str | None:
    """Return the hash of a file, None for one of `Loader.read` that is not known."""
    return None if lora.sha256.startswith(_UNREAD) else lora.sha256


class Loader:
    """The files of a shelf as requests; `cache` holds those that were read. Safe to use from several threads."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf
        self.cache = LoraCache()

    def forget(self) -> None:
        """Give back the memory that files are held in."""
        self.cache = LoraCache()

    def load(
        self,
        tags: Iterable[LoraTag],
        source: str = "",
        *,
        hires: bool = False,
        seed: int | None = None,
        side: Side | None = None,
        patience: Patience | None = None,
    ) -> tuple[list[Request], list[Notice]]:
        """Return a request for each tag whose files are found and can be read, and what there is to say.

        `source` is the prompt in which the spans of the tags are; `hires` asks for the strengths of the second pass.
        Masks lie in the folders of the LoRA files. Whatever goes wrong with a tag costs that one alone.
        """
        patience = patience or Patience()

        def request_for(tag: LoraTag, entry: Entry) -> Request:
            lora = self.cache.load(entry.path, name=self.shelf.name_of(entry))
            return request_of(tag, lora, hires=hires, seed=seed, side=side, place=self._place(tag))

        return self._each(tags, source, patience, request_for, seed)

    def read(self, tags: Iterable[LoraTag], source: str, patience: Patience) -> tuple[list[Request], list[Notice]]:
        """Return what `load` does, with files of which only the headers are read: for `explain`.

        Their `sha256` is "" or, where it is known or there is patience to find out, that of the file; what stands for
        different files is different all the same.
        """
        outlines: dict[Path, Lora] = {}

        def request_for(tag: LoraTag, entry: Entry) -> Request:
            if entry.path not in outlines:
                if len(outlines) == _MOST_FILES:
                    raise LoraError(f"not looked at: only the first {_MOST_FILES} files of a prompt are")
                lora = outline(entry.path)
                sha256 = self.shelf.hashes.known_sha256(entry, patience) or f"{_UNREAD}{entry.path}"
                outlines[entry.path] = replace(lora, name=self.shelf.name_of(entry), hashed=partial(str, sha256))
            return request_of(tag, outlines[entry.path], place=self._place(tag))

        return self._each(tags, source, patience, request_for)

    def _each(
        self,
        tags: Iterable[LoraTag],
        source: str,
        patience: Patience,
        request_for: Callable[[LoraTag, Entry], Request],
        seed: int | None = None,
    ) -> tuple[list[Request], list[Notice]]:
        requests: list[Request] = []
        notices: list[Notice] = []
        for written in tags:
            tag = written
            if is_wildcard(tag.name) and seed is None:
                said = "which file of the folder it is will be drawn by the seed of the picture"
                notices.append(_notice("note", said, tag, source))
                continue
            try:
                if is_wildcard(tag.name):
                    tag = replace(tag, name=self.shelf.drawn(tag.name, seed))
                    said = f'"{written.name}" is "{tag.name}" for the seed {seed}'
                    notices.append(_notice("note", said, tag, source))
                entry, remark = self.shelf.find(tag.name, patience)
                largest = _largest_strength(tag)
                if largest > _MOST_STRENGTH:
                    raise LoraError(
                        f"a strength of {largest:g} is not applied: the picture would be of no numbers at all. "
                        f"Up to {_MOST_STRENGTH:g} is"
                    )
                requests.append(request_for(tag, entry))
                if largest > _USUAL_STRENGTH:
                    said = f"a strength of {largest:g} is unusually high; is a point missing?"
                    notices.append(_notice("note", said, tag, source))
            except LoraError as error:
                notices.append(_notice("error", str(error), tag, source))
                continue
            except Exception as error:  # what nobody foresaw is no reason to lose the other tags
                notices.append(_notice("error", f'"{tag.name}" cannot be used: {told(error)}', tag, source))
                _log.error("a LoRA cannot be used", exc_info=True)
                continue
            if remark:
                notices.append(_notice("warning", remark, tag, source))
        return requests, notices

    def _place(self, tag: LoraTag) -> Place | None:
        region = tag.conditions.region
        return None if region is None else find_place(region, self.shelf.folders)


def _largest_strength(tag: LoraTag) -> float:
    """Return how far the tag's strengths go from 0, of both passes and at every step."""
    given = (tag.te, tag.unet, tag.conditions.hires_te, tag.conditions.hires_unet)
    numbers: list[float] = []
    for strength in given:
        if strength is not None:
            numbers += [key.value for key in strength.keys] if isinstance(strength, Curve) else [strength]
    return max(map(abs, numbers))


def _notice(severity: Severity | Literal["note"], message: str, tag: LoraTag, source: str) -> Notice:
    said = notice_of(Diagnostic("info" if severity == "note" else severity, tag.span, message), source)
    return replace(said, severity=severity)
