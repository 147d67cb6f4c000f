"""What one server has: the models, the LoRAs, the pictures that were painted, and the jobs of its users."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from lora_runtime.batching.from_threads import LineInThread
from lora_runtime.batching.line import Line
from lora_runtime.catalog import LoraCatalog
from lora_runtime.panel.marks import Marks
from lora_runtime.panel.presets import own_presets
from lora_runtime.prompt import LoraTag, parse_prompt
from lora_runtime.prompt.over_steps import over_steps
from lora_runtime.prompt.presets import common_presets
from lora_runtime.studio.canvas import Canvas, Commission, Step, canvases_of
from lora_runtime.studio.faults import StudioError
from lora_runtime.studio.job import Job
from lora_runtime.studio.models import Models
from lora_runtime.studio.painting import Painted, Picture, paint, painted_of
from lora_runtime.studio.settings import MAX_BATCH, MOST_AT_ONCE, Settings
from lora_runtime.studio.shelf import used_in
from lora_runtime.sweep.jobs import grid_rows
from lora_runtime.sweep.manifest import line_of
from lora_runtime.sweep.rows import SweepError
from lora_runtime.sweep.sheet import write_sheet

__all__ = ["MOST_CELLS", "Workshop", "grid_of", "strength_points", "without"]

MOST_CELLS = 64  # of a grid: others wait meanwhile
_AXES = ("strengths", "loras", "seeds")


class Workshop:
    """Paints for several users, in one call where their pictures fit. Safe to use from several threads."""

    def __init__(
        self,
        models: Models,
        loras: LoraCatalog,
        out: str | os.PathLike[str] | None = None,
        own_folders: Sequence[str | os.PathLike[str]] = (),
        *,
        max_batch: int = MAX_BATCH,
    ) -> None:
        """Take the models and the LoRAs; a copy of each picture is left in `out`, which is made if it is not there.

        `own_folders` are the folders that users may keep sets and presets in. At most `max_batch` pictures are painted
        in one call.
        """
        self.models, self.loras, self.own_folders = models, loras, tuple(own_folders)
        self.marks = Marks()
        self._out = None if out is None else Path(out)
        if self._out is not None:
            self._out.mkdir(parents=True, exist_ok=True)
        self._temporary = tempfile.TemporaryDirectory(prefix="lora-runtime-studio-", ignore_cleanup_errors=True)
        self._lock = threading.Lock()
        self._number = 0
        self._jobs: dict[str, list[_Job]] = {}
        line: Line[Canvas, Picture | Exception] = Line(
            _Painter(self), max_batch=max_batch, max_queue=MOST_AT_ONCE * MOST_CELLS
        )
        self._line = LineInThread(line)

    @property
    def folder(self) -> Path:
        """Where pictures are while the server runs."""
        return Path(self._temporary.name)

    @property
    def presets(self) -> Mapping[str, str]:
        """Block weights by name, as they are now: the common ones, and those that were saved."""
        return {**common_presets(), **own_presets(self.own_folders)}

    @property
    def line_length(self) -> int:
        """How many pictures wait or are being painted, of all users."""
        return self._line.length

    def close(self) -> None:
        """End all jobs, and remove the folder of pictures."""
        with self._lock:
            jobs = [job for own in self._jobs.values() for job in own]
        for job in jobs:
            job.cancel()
        self._line.close()
        self._temporary.cleanup()

    def paint(self, asked: Sequence[Settings], model: str, who: str) -> Iterator[Step | list[Painted]]:
        """Yield each step, then what came of all settings. Raises where there is no picture at all.

        `who` is any name for whoever may `cancel` this; closing the iterator cancels it too. The pictures wait in one
        line with those of all others.
        """
        self.models.named(model)
        total = sum(settings.pictures for settings in asked)
        job: _Job = Job(lambda tell, gone: self._line.paint(canvases_of(asked, model, Commission(total, tell, gone))))
        with self._lock:
            self._jobs.setdefault(who, []).append(job)
        try:
            for said in job.run():
                yield said if isinstance(said, Step) else self._marked(painted_of(asked, said))
        finally:
            job.cancel()
            with self._lock:
                self._jobs[who].remove(job)
                if not self._jobs[who]:
                    del self._jobs[who]

    def cancel(self, who: str) -> bool:
        """End what somebody waits for; return whether there was anything.

        What is painted in one call with pictures of others goes on for these.
        """
        with self._lock:
            jobs = list(self._jobs.get(who, ()))
        for job in jobs:
            job.cancel()
        return bool(jobs)

    def save(self, picture: Picture) -> Path:
        """Return the path of a picture's PNG."""
        path = self._free_path(f"-{picture.seed}.png")
        path.write_bytes(picture.png)
        if self._out is not None:
            _copy_beside(path, self._out)
        return path

    def sheet(self, painted: Sequence[Painted]) -> Path | None:
        """Return the path of a contact sheet: tags across, and down what else differs; None where there is nothing.

        The place of a picture that could not be painted stays empty.
        """
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        lines = []
        for index, each in enumerate(painted):
            asked = each.settings
            (row,) = grid_rows({"prompts": [asked.prompt], "seed": asked.seed})
            for picture in each.pictures[:1]:
                (folder / f"{index}.png").write_bytes(picture.png)
            lines.append(line_of(row, file=f"{index}.png" if each.pictures else None))
        out = self._free_path("-grid.png")
        drawn = write_sheet(lines, folder, out)
        shutil.rmtree(folder, ignore_errors=True)
        if drawn and self._out is not None:
            _copy_beside(out, self._out)
        return out if drawn else None

    def _marked(self, painted: list[Painted]) -> list[Painted]:
        """Take note that the LoRAs of these pictures were used."""
        for each in painted:
            if each.pictures:
                with suppress(OSError):  # the picture is worth more than the date
                    self.marks.use(used_in(self.loras, each.settings.prompt))
        return painted

    def _free_path(self, ending: str) -> Path:
        """Return a path that no picture has, here or in the folder of copies."""
        with self._lock:
            while True:
                self._number += 1
                name = f"{self._number:05}{ending}"
                if self._out is None or not any(self._out.glob(f"{self._number:05}-*.png")):
                    return self.folder / name


_Job = Job[Step, list[Picture | Exception]]


class _Painter:
    """The one painter of a workshop's line."""

    def __init__(self, shop: Workshop) -> None:
        self._shop = shop

    def paint(
        self, canvases: Sequence[Canvas], stopped: Callable[[], bool] | None = None, /
    ) -> list[Picture | Exception]:
        """Return the picture of each canvas, or why it has none; they have one model."""
        shop = self._shop
        with shop.models.using(canvases[0].model) as pipe:
            return paint(pipe, canvases, shop.loras, presets=shop.presets, stopped=stopped or (lambda: False))


def without(settings: Settings, tag: str | None = None) -> Settings:
    """Return the settings of the first picture without a tag, as it is written, or (None) without all of them."""
    parsed = parse_prompt(settings.prompt)
    if tag is None:
        prompt = parsed.text
    else:
        spans = [each.span for each in parsed.tags if each.raw == tag]
        if not spans:
            raise StudioError(f"{tag} is not in the prompt of this picture: choose another tag")
        start, end = spans[0]
        prompt = settings.prompt[:start] + settings.prompt[end:]
    return replace(settings, prompt=prompt, pictures=1)


def grid_of(settings: Settings, axes: Mapping[str, Any], sources: LoraCatalog | None = None) -> list[Settings]:
    """Return settings for each combination of the axes: `strengths`, `loras` and `seeds`, as docs/sweep.md has them.

    `sources` has the folders with the sets that the prompt names.
    """
    given = {axis: axes[axis] for axis in _AXES if axes.get(axis)}
    try:
        rows = grid_rows({"prompt": settings.prompt, "seed": settings.seed, **given}, sources)
    except SweepError as error:
        raise StudioError(str(error)) from error
    if len(rows) > MOST_CELLS:
        raise StudioError(f"a grid of {len(rows)} pictures: {MOST_CELLS} are the most; take fewer values")
    if faulty := next((row.fault for row in rows if row.fault), ""):
        raise StudioError(faulty)
    return [replace(settings, prompt=row.prompt, seed=row.seed, pictures=1) for row in rows]


def strength_points(tags: Sequence[LoraTag], steps: int) -> list[tuple[int, float, str]]:
    """Return points (step, strength, name) of a line for each tag: each value holds until the next step."""
    points = []
    for number, tag in enumerate(tags):
        values = over_steps(tag, steps)
        name = tag.name if [each.name for each in tags].count(tag.name) == 1 else f"{tag.name} ({number + 1})"
        for step, value in enumerate(values or ()):
            points += [(step, value, name), (step + 1, value, name)]
    return points


def _copy_beside(path: Path, folder: Path) -> None:
    with suppress(OSError):  # a full disk costs the copy, and not the picture
        shutil.copyfile(path, folder / path.name)
