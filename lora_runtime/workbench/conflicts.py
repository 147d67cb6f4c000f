"""What the LoRAs of a prompt do to each other, for the panel: a line for each two, and their heat map as a table.

    {"pairs": [{"names": [A, B], "layers": N, "fighting": N, "cosine": C}, …],
     "map": {"columns": [A, B, [A, B], …], "rows": [{"block": "IN04", "cells": [{"value", "text"}, …]}, …]},
     "said": [TEXT, …]}

A column is a file, with what it changes of a block as a share of the most, or two files, with their cosine; a cell
without a value is of a block that they do not have.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, TypeVar

from lora_runtime.catalog import LoraCatalog
from lora_runtime.errors import LoraError
from lora_runtime.lora_cache import LoraCache
from lora_runtime.prompt import LoraTag, parse_prompt
from lora_runtime.requests import Request, request_of
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
    highest = max(norm for block in found.blocks.values() for norm in block.norms)
    rows = [{"block": name, "cells": [*_cells(block, highest)]} for name, block in found.blocks.items()]
    columns = [*found.names, *(pair["names"] for pair in pairs)]
    return {"pairs": pairs, "map": {"columns": columns, "rows": rows}, "said": [*said, *found.suggestions]}


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

    def __init__(self, catalog: LoraCatalog) -> None:
        """Take the catalog; nothing is read."""
        self._catalog = catalog
        self._cache = LoraCache(_MOST_BYTES, MOST_FILES)
        self._reports: Remembered[Reported] = Remembered()

    def __call__(self, prompt: str) -> dict[str, Any]:
        """Return what the LoRAs of a prompt do to each other; what cannot be in it costs itself, and is said."""
        tags = parse_prompt(prompt).tags
        said = [f"only the first {MOST_FILES} LoRAs are looked at"] if len(tags) > MOST_FILES else []
        requests: list[Request] = []
        for tag in tags[:MOST_FILES]:
            try:
                request = self._request(tag)
            except LoraError as error:
                said.append(f"{tag.name} is left out: {error}")
                continue
            try:
                matched_modules([*requests, request], None)
            except LoraError:
                said.append(f"{tag.name} is left out: it has no module by the names that the LoRAs before it have")
            else:
                requests.append(request)
        if len(requests) < 2:
            return conflicts_of(None, said)
        try:
            found = self._reports.of(requests, None, lambda: report(requests, seconds=_SECONDS))
        except (LoraError, TimeoutError) as error:
            return conflicts_of(None, [*said, str(error)])
        return conflicts_of(found, said)

    def _request(self, tag: LoraTag) -> Request:
        """Return what a tag asks for; LoraError where that is no one strength for each module."""
        entry = self._catalog.resolve(tag.name)
        request = request_of(tag, self._cache.load(entry.path, name=entry.name))
        matched_modules([request], None)
        return request
