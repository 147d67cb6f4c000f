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

from lora_runtime.catalog import LoraCatalog
from lora_runtime.panel.marks import Marks
from lora_runtime.panel.presets import own_presets
from lora_runtime.prompt import LoraTag, parse_prompt
from lora_runtime.prompt.over_steps import over_steps
from lora_runtime.prompt.presets import common_presets
from lora_runtime.studio.faults import StudioError
from lora_runtime.studio.job import Job
from lora_runtime.studio.models import Models
from lora_runtime.studio.painting import Painted, Picture, Step, paint
from lora_runtime.studio.settings import Settings
from lora_runtime.studio.shelf import used_in
from lora_runtime.sweep.jobs import grid_rows
from lora_runtime.sweep.manifest import line_of
from lora_runtime.sweep.rows import SweepError
from lora_runtime.sweep.sheet import write_sheet

__all__ = ["MOST_CELLS", "Workshop", "grid_of", "strength_points", "without"]

MOST_CELLS = 64  # of a grid: others wait meanwhile
_AXES = ("strengths", "loras", "seeds")


class Workshop:
    """Paints for several users, one after the other. Safe to use from several threads."""

    def __init__(
        self,
        models: Models,
        loras: LoraCatalog,
        out: str | os.PathLike[str] | None = None,
        own_folders: Sequence[str | os.PathLike[str]] = (),
    ) -> None:
        """Take the models and the LoRAs; a copy of each picture is left in `out`, which is made if it is not there.

        `own_folders` are the folders that users may keep sets and presets in.
        """
        self.models, self.loras, self.own_folders = models, loras, tuple(own_folders)
        self.marks = Marks()
        self._out = None if out is None else Path(out)
        if self._out is not None:
            self._out.mkdir(parents=True, exist_ok=True)
        self._temporary = tempfile.TemporaryDirectory(prefix="lora-runtime-studio-", ignore_cleanup_errors=True)
        self._lock = threading.Lock()
        self._number = 0
        self._jobs: dict[str, Job[Step, list[Painted]]] = {}

    @property
    def folder(self) -> Path:
        """Where pictures are while the server runs."""
        return Path(self._temporary.name)

    @property
    def presets(self) -> Mapping[str, str]:
        """Block weights by name, as they are now: the common ones, and those that were saved."""
        return {**common_presets(), **own_presets(self.own_folders)}

    def close(self) -> None:
        """End all jobs, and remove the folder of pictures."""
        with self._lock:
            jobs = list(self._jobs.values())
        for job in jobs:
            job.cancel()
        self._temporary.cleanup()

    def paint(self, asked: Sequence[Settings], model: str, who: str) -> Iterator[Step | list[Painted]]:
        """Yield each step, then what came of all settings.

        `who` is any name for whoever may `cancel` this; closing the iterator cancels it too.
        """
        self.models.named(model)
        job: Job[Step, list[Painted]] = Job(lambda say: self._painted(asked, model, say))
        with self._lock:
            self._jobs[who] = job
        try:
            yield from job.run()
        finally:
            with self._lock:
                if self._jobs.get(who) is job:
                    del self._jobs[who]

    def cancel(self, who: str) -> bool:
        """End what somebody has running at its next step; return whether there was anything."""
        with self._lock:
            job = self._jobs.get(who)
        if job is not None:
            job.cancel()
        return job is not None

    def save(self, picture: Picture) -> Path:
        """Return the path of a picture's PNG."""
        path = self._free_path(f"-{picture.seed}.png")
        path.write_bytes(picture.png)
        if self._out is not None:
            _copy_beside(path, self._out)
        return path

    def sheet(self, painted: Sequence[Painted]) -> Path | None:
        """Return the path of a contact sheet: tags across, and down what else differs; None where there is nothing."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        lines = []
        for index, each in enumerate(painted):
            (folder / f"{index}.png").write_bytes(each.pictures[0].png)
            asked = each.settings
            (row,) = grid_rows({"prompts": [asked.prompt], "seed": asked.seed})
            lines.append(line_of(row, file=f"{index}.png"))
        out = self._free_path("-grid.png")
        drawn = write_sheet(lines, folder, out)
        shutil.rmtree(folder, ignore_errors=True)
        if drawn and self._out is not None:
            _copy_beside(out, self._out)
        return out if drawn else None

    def _painted(self, asked: Sequence[Settings], model: str, say: Callable[[Step], None]) -> list[Painted]:
        done, total = 0, sum(settings.pictures for settings in asked)
        found = []
        presets = self.presets

        def said(step: Step) -> None:
            say(replace(step, picture=done + step.picture, pictures=total))

        with self.models.using(model) as pipe:
            for settings in asked:
                found.append(paint(pipe, settings, self.loras, model=model, presets=presets, on_step=said))
                with suppress(OSError):  # the picture is worth more than the date
                    self.marks.use(used_in(self.loras, settings.prompt))
                done += settings.pictures
        return found

    def _free_path(self, ending: str) -> Path:
        """Return a path that no picture has, here or in the folder of copies."""
        with self._lock:
            while True:
                self._number += 1
                name = f"{self._number:05}{ending}"
                if self._out is None or not any(self._out.glob(f"{self._number:05}-*.png")):
                    return self.folder / name


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


def grid_of(settings: Settings, axes: Mapping[str, Any]) -> list[Settings]:
    """Return settings for each combination of the axes: `strengths`, `loras` and `seeds`, as docs/sweep.md has them."""
    given = {axis: axes[axis] for axis in _AXES if axes.get(axis)}
    try:
        rows = grid_rows({"prompt": settings.prompt, "seed": settings.seed, **given})
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
