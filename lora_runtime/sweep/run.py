"""A sweep from its rows to its folder: what is there already, what cannot be, what is painted, what is written."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from lora_runtime.errors import LoraError
from lora_runtime.folder import Entry
from lora_runtime.lookup import Loras, catalog_for
from lora_runtime.prompt import LoraTag, parse_prompt
from lora_runtime.sets import read_sets, with_sets
from lora_runtime.sweep.lock import alone_in
from lora_runtime.sweep.manifest import Line, Manifest, line_of
from lora_runtime.sweep.on_ray import paint_on_ray
from lora_runtime.sweep.page import page_of
from lora_runtime.sweep.paint import Painted, Painter
from lora_runtime.sweep.pipes import MakePipe, model_fault, pipes_of, with_models
from lora_runtime.sweep.plan import make_batches
from lora_runtime.sweep.rows import Row, SweepError, checked_rows
from lora_runtime.sweep.sheet import write_sheet
from lora_runtime.tag_files import files_of
from lora_runtime.whole_files import write_whole
from lora_runtime.wildcards import is_wildcard

__all__ = ["MAX_PIXELS", "Swept", "sweep"]

MAX_PIXELS = 2048 * 2048
_USUAL_SIDE = 512  # pixels: what a side that a row leaves out counts as
_MOST_SUGGESTIONS = 20  # of 10,000 files each takes 0.2 s


@dataclass(frozen=True)
class Swept:
    """What a sweep has done: how many rows it painted, how many failed, how many pictures were there before.

    `read` is how often its workers read a LoRA file from disk.
    """

    out: Path
    painted: int
    failed: int
    kept: int
    seconds: float
    notes: tuple[str, ...] = ()
    read: int = 0

    @property
    def manifest(self) -> Path:
        """The line of each row, JSON."""
        return self.out / "manifest.jsonl"

    @property
    def index(self) -> Path:
        """The page with all of them."""
        return self.out / "index.html"


def sweep(
    rows: Iterable[Row | Mapping[str, Any]],
    make_pipe: MakePipe,
    out: str | os.PathLike[str],
    *,
    loras: Loras = None,
    batch: int = 1,
    workers: int = 1,
    ray: str | None = None,
    gpus: float | None = None,
    resume: bool = False,
    grid: str | os.PathLike[str] | None = None,
    max_pixels: int = MAX_PIXELS,
    on_line: Callable[[Line, int], None] | None = None,
) -> Swept:
    """Paint the rows with pipelines that `make_pipe` makes, into the folder `out`; return what was done.

        swept = sweep([{"prompt": "a boat <lora:ink:0.7>", "seed": 1}], load_pipeline, "out", loras="loras")

    `make_pipe` makes the pipeline, or a mapping of names to such functions makes several, one after the other: a row's
    `model` is such a name, and the first where it says none.

    A row is a mapping of columns as docs/sweep.md has them, or a `Row`. Each gets a picture and a line in
    `manifest.jsonl`; one that cannot be painted costs only itself, and its line says why. `loras` is as for `apply`.
    With `batch` 1 a picture has the bits of one painted by hand; a larger one paints rows with LoRAs of their own in
    one call, within the rounding of activations. `workers` > 1, or `ray`, the address of a cluster, paints on Ray's
    actors, with `gpus` each. `resume` paints what is missing or was made of other content, and rows that failed. `grid`
    is a PNG with all pictures. No row may have more than `max_pixels`. `on_line(line, total)` is told of each row that
    is done. An exception, KeyboardInterrupt too, leaves all that was painted until then in the folder.

    Raises SweepError for what can be no sweep: a folder with a sweep in it and not `resume`, or in which another one is
    at work; workers without Ray; no worker that gets a pipeline. What `make_pipe` raises in this process is raised;
    of several models the rows of one that cannot be had fail.
    """
    if batch < 1 or workers < 1:
        raise SweepError(f"batch is {batch} and workers is {workers}: both are whole numbers from 1")
    started = time.perf_counter()
    pipes = pipes_of(make_pipe)
    asked, notes = checked_rows(rows)
    sets = cache(lambda: read_sets(*catalog_for(loras).folders))
    # Written out from here on: what a set says now is what a picture was made of.
    asked = [replace(row, prompt=with_sets(row.prompt, sets)) for row in asked]
    asked = with_models(asked, pipes)
    with alone_in(Path(out)) as said:
        notes += [said] if said else []
        folder = _Folder(Path(out), loras, resume, {row.key: row for row in asked})
        left = [row for row in asked if row.key not in folder.manifest.lines]
        kept = len(asked) - len(left)
        folder.tell = (lambda line: on_line(line, len(left))) if on_line else None
        try:
            faults = {row.key: fault for row in left if (fault := folder.fault(row, max_pixels, pipes))}
            folder.write([Painted(None, line_of(row, error=faults[row.key])) for row in left if row.key in faults])
            good = [row for row in left if row.key not in faults]
            batches = make_batches(good, batch, folder.files)
            if good and (workers > 1 or ray is not None):
                done = paint_on_ray(batches, make_pipe, folder.folders, workers, ray, gpus)
            else:
                done = _paint_here([each.rows for each in batches], make_pipe, loras)
            for painted in done:
                folder.write(painted)
        finally:
            lines = folder.in_order()
            write_whole(folder.path / "index.html", page_of(lines, folder.path.resolve().name).encode())
        if grid is not None:
            notes += folder.draw(Path(grid))
    of_now = [folder.manifest.lines[row.key] for row in left]
    failed, read = sum(bool(line["error"]) for line in of_now), sum(line.get("read", 0) for line in of_now)
    return Swept(folder.path, len(left) - failed, failed, kept, time.perf_counter() - started, tuple(notes), read)


def _paint_here(batches: Sequence[Sequence[Row]], make_pipe: MakePipe, loras: Loras) -> Iterator[list[Painted]]:
    if batches:
        painter = Painter(make_pipe, loras)
        for rows in batches:
            yield painter.paint(rows)


class _Folder:
    """The folder of a sweep, and the files that its rows name."""

    def __init__(self, path: Path, loras: Loras, resume: bool, asked: Mapping[str, Row]) -> None:
        self.path, self.asked = path, asked
        self.tell: Callable[[Line], None] | None = None
        self._catalog = catalog_for(loras)
        self._entries: dict[tuple[str, str | None, int | None], list[tuple[LoraTag, Entry]] | LoraError] = {}
        self._unknown = 0
        self.manifest = Manifest(path / "manifest.jsonl")
        self.manifest.read()
        if self.manifest.lines and not resume:
            raise SweepError(
                f"{path} has a sweep in it: --resume (resume=True) paints what it lacks, or name another folder"
            )
        self.manifest.keep([key for key, line in self.manifest.lines.items() if self._stays(key, line)])

    @property
    def folders(self) -> list[str | dict[str, str]]:
        """The folders with the LoRAs, and the files with names of their own, as another process can be told them."""
        files = {name: str(path.absolute()) for name, path in self._catalog.files.items()}
        return [*([files] if files else []), *(str(folder.absolute()) for folder in self._catalog.folders)]

    def write(self, done: Sequence[Painted]) -> None:
        """Write pictures, and then the lines that say they are there."""
        for each in done:
            if each.png is not None:
                write_whole(self.path / each.line["file"], each.png)
        if done:
            self.manifest.append(each.line for each in done)
        for each in done:
            if self.tell is not None:
                self.tell(each.line)

    def draw(self, sheet: Path) -> list[str]:
        """Draw the contact sheet of the rows that are asked for; return what there is to say of it."""
        lines = [line for line in self.in_order() if line["key"] in self.asked]
        try:
            return [] if write_sheet(lines, self.path, sheet) else [f"no {sheet}: there is no picture to be shown"]
        except SweepError as error:  # for a sheet no sweep has failed
            return [f"no {sheet}: {error}"]

    def in_order(self) -> list[Line]:
        """Return the lines in the order of the rows, then those of rows that are not asked for now."""
        lines = self.manifest.lines
        order = [key for key in self.asked if key in lines]
        return [lines[key] for key in (*order, *(key for key in lines if key not in self.asked))]

    def fault(self, row: Row, max_pixels: int, pipes: Mapping[str, Any]) -> str:
        """Return why a row cannot be painted, as far as that is known before a pipeline is asked; "" where it can."""
        if known := row.fault or model_fault(row, pipes):
            return known
        width, height = row.width or _USUAL_SIDE, row.height or _USUAL_SIDE
        if width * height > max_pixels:
            return f"{width} × {height} are more than {max_pixels} pixels: ask for less, or allow more (max_pixels)"
        prompt = parse_prompt(row.prompt)
        for said in prompt.diagnostics:
            if said.severity == "error":
                return said.message + (f" ({said.hint})" if said.hint else "")
        for tag in prompt.tags:
            if isinstance(found := self._found(tag, row.seed), LoraError):
                return str(found)
        return ""

    def files(self, row: Row) -> list[str]:
        """Return the paths of the files that a row needs."""
        found = [self._found(tag, row.seed) for tag in row.tags]
        return [str(entry.path) for each in found if not isinstance(each, LoraError) for _, entry in each]

    def _stays(self, key: str, line: Line) -> bool:
        """Return whether a row's picture is there, made of what the row and the files say now."""
        row = self.asked.get(key)
        if line.get("error") or line.get("file") != f"{key}.png" or not (self.path / line["file"]).is_file():
            return False
        if row is None:
            return True  # of a row that is not asked for now
        if row.digest != line.get("digest"):
            return False
        try:
            found = [each for tag in row.tags for each in files_of(self._catalog, tag, seed=row.seed)]
            now = {tag.name: self._catalog.hashes(entry).sha256 for tag, entry in found}
        except LoraError:
            return False
        return now == line.get("files")

    def _found(self, tag: LoraTag, seed: int) -> list[tuple[LoraTag, Entry]] | LoraError:
        asked = tag.name, tag.conditions.expert, seed if is_wildcard(tag.name) else None
        if asked not in self._entries:
            few = self._unknown < _MOST_SUGGESTIONS
            try:
                self._entries[asked] = files_of(
                    self._catalog, tag, seed=seed, look_again=self._unknown == 0, suggest=few
                )
            except LoraError as error:
                self._entries[asked] = error
                self._unknown += 1
        return self._entries[asked]
