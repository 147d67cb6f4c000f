"""What the LoRAs of a prompt do to each other, for the panel: a line for each two, and their heat map as a table.

    {"pairs": [{"names": [A, B], "layers": N, "fighting": N, "cosine": C}, …],
     "map": {"columns": [A, B, [A, B], …], "rows": [{"block": "IN04", "cells": [{"value", "text"}, …]}, …]},
     "said": [TEXT, …]}

A column is a file, with what it changes of a block as a share of the most, or two files, with their cosine; a cell
without a value is of a block that they do not have, or has no angle: one of the two makes no change there.

Of a model with two denoisers (Wan 2.2) each is a model of its own: files for one do nothing to those for the other.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar

from lora_runtime.catalog import LoraCatalog
from lora_runtime.errors import LoraError
from lora_runtime.lora_cache import LoraCache
from lora_runtime.prompt import parse_prompt
from lora_runtime.prompt.presets import common_presets
from lora_runtime.requests import Request, request_of
from lora_runtime.tag_files import files_of
from lora_runtime.wildcards import is_wildcard
from lora_runtime.workbench.matching import matched_modules
from lora_runtime.workbench.report import Block, Reported, report

__all__ = ["MOST_FILES", "Conflicts", "Remembered", "conflicts_of"]

MOST_FILES = 8  # that are read whole, each of which is compared with all others
_MOST_KEPT = 16
_MOST_BYTES = 1 << 30
_SECONDS = 60.0

Made = TypeVar("Made")


def conflicts_of(found: Reported | None, said: Sequence[str] = ()) -> dict[str, Any]:
    """Return a report as JSON can hold it; without one only what there is to say."""
    if found is None:
        return {"pairs": [], "map": None, "said": [*said]}
    pairs = [
        {
            "names": [found.names[file] for file in pair.files],
            "layers": pair.modules,
            "fighting": pair.fighting,
            "cosine": None if pair.cosine is None else round(pair.cosine, 4),
        }
        for pair in found.total.pairs
    ]
    highest = max(norm for block in found.blocks.values() for norm in block.norms) or 1.0
    rows = [{"block": name, "cells": [*_cells(block, highest)]} for name, block in found.blocks.items()]
    columns = [*found.names, *(pair["names"] for pair in pairs)]
    still = [
        f"{name} makes no change: all of it is 0"
        for name, norm, count in zip(found.names, found.total.norms, found.total.modules, strict=True)
        if count and not norm
    ]
    return {"pairs": pairs, "map": {"columns": columns, "rows": rows}, "said": [*said, *still, *found.suggestions]}


def _cells(block: Block, highest: float) -> list[dict[str, Any]]:
    norms = [
        {"value": round(norm / highest, 4), "text": f"{norm:.3g}"} if count else {"value": None, "text": "–"}
        for norm, count in zip(block.norms, block.modules, strict=True)
    ]
    cosines = [
        {"value": None, "text": "–"}
        if pair.cosine is None
        else {"value": round(pair.cosine, 4), "text": f"{pair.cosine:+.2f}"}
        for pair in block.pairs
    ]
    return [*norms, *cosines]


class Remembered(Generic[Made]):
    """What was found of requests, the last few; files are known by their content, and two of one content are one."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._known: OrderedDict[Hashable, Made] = OrderedDict()
        self._lock = threading.Lock()

    def of(
        self,
        requests: Sequence[Request],
        about: Hashable,
        make: Callable[[], Made],
        keep: Callable[[Made], bool] = lambda _: True,
    ) -> Made:
        """Return what `make` gives, or gave for the same requests `about` the same thing, where it was one to keep."""
        asked = tuple(
            (each.lora.name, each.lora.sha256, each.dyn, repr((each.te, each.unet, each.conditions, each.place)))
            for each in requests
        )
        with self._lock:
            if (asked, about) in self._known:
                self._known.move_to_end((asked, about))
                return self._known[asked, about]
        made = make()
        if not keep(made):
            return made
        with self._lock:
            self._known[asked, about] = made
            while len(self._known) > _MOST_KEPT:
                self._known.popitem(last=False)
        return made


class Conflicts:
    """What LoRAs of a catalog do to each other, by their files alone. Safe to use from several threads."""

    def __init__(self, catalog: LoraCatalog, presets: Callable[[], Mapping[str, str]] = common_presets) -> None:
        """Take the catalog, and what gives the block weights by name; nothing is read."""
        self._catalog, self._presets = catalog, presets
        self._cache = LoraCache(_MOST_BYTES, MOST_FILES)
        self._reports: Remembered[Reported] = Remembered()

    def __call__(self, prompt: str) -> dict[str, Any]:
        """Return what the LoRAs of a prompt do to each other; what cannot be in it costs itself, and is said."""
        tags = parse_prompt(prompt, presets=self._presets()).tags
        said = [f"only the first {MOST_FILES} LoRAs are looked at"] if len(tags) > MOST_FILES else []
        asked: list[tuple[str | None, Request]] = []  # each with the denoiser that it is for, None for all
        for tag in tags[:MOST_FILES]:
            if is_wildcard(tag.name):
                said.append(f"{tag.name} is left out: it is one file of a folder, drawn by the seed of each picture")
                continue
            try:
                for own, entry in files_of(self._catalog, tag):
                    request = request_of(own, self._cache.load(entry.path, name=entry.name))
                    # Without a model all denoisers have one name.
                    request = replace(request, conditions=replace(request.conditions, expert=None))
                    matched_modules([request], None)
                    asked.append((own.conditions.expert, request))
            except LoraError as error:
                said.append(f"{tag.name} is left out: {error}")
        experts: list[str | None] = [*sorted({expert for expert, _ in asked if expert})] or [None]
        tables = [self._of_one(asked, expert) for expert in experts]
        said += dict.fromkeys(text for table in tables for text in table["said"])
        maps = [table["map"] for table in tables if table["map"]]
        pairs: list[dict[str, Any]] = []
        for table in tables:  # two files that are for all denoisers meet in each of them, and alike
            pairs += [pair for pair in table["pairs"] if pair not in pairs]
        return {
            "pairs": pairs,
            "map": _side_by_side(maps) if maps else None,
            "said": said,
        }

    def _of_one(self, asked: Sequence[tuple[str | None, Request]], expert: str | None) -> dict[str, Any]:
        """Return what those do to each other that act in one denoiser."""
        said: list[str] = []
        requests: list[Request] = []
        for own, request in asked:
            if own not in (None, expert):
                continue
            try:
                matched_modules([*requests, request], None)
            except LoraError:
                name = request.lora.name
                said.append(f"{name} is left out: it has no module by the names that the LoRAs before it have")
            else:
                requests.append(request)
        if len(requests) < 2:
            return conflicts_of(None, said)
        try:
            found = self._reports.of(requests, None, lambda: report(requests, seconds=_SECONDS))
        except (LoraError, TimeoutError) as error:
            return conflicts_of(None, [*said, str(error)])
        return conflicts_of(found, said)


def _side_by_side(maps: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return heat maps as one, those of all denoisers with the blocks of each."""
    blocks = dict.fromkeys(row["block"] for each in maps for row in each["rows"])
    rows = [{row["block"]: row["cells"] for row in each["rows"]} for each in maps]
    empty = [[{"value": None, "text": "–"}] * len(each["columns"]) for each in maps]
    return {
        "columns": [column for each in maps for column in each["columns"]],
        "rows": [
            {
                "block": block,
                "cells": [cell for own, none in zip(rows, empty, strict=True) for cell in own.get(block, none)],
            }
            for block in blocks
        ],
    }
