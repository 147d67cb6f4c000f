"""What a run leaves behind: the LoRA, its checkpoints, samples, what the WebUI's card shows, a curve and a sheet."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lora_runtime.errors import LoraError
from lora_runtime.header import hashes
from lora_runtime.pipelines.family import family_of
from lora_runtime.train.batches import places_of
from lora_runtime.train.charts import loss_curve, sheet
from lora_runtime.train.config import Config
from lora_runtime.train.folders import Dataset
from lora_runtime.train.notes import metadata_of, trigger_phrase
from lora_runtime.train.run import PRECISIONS, Run
from lora_runtime.train.samples import Wish, paint, read_wish
from lora_runtime.workbench.writing import write_file

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Writer"]

_SAMPLES = "sample"  # in config.output_dir, as kohya's trainer has it


class Writer:
    """Writes what a run has come to. `notes`: what there is to say of it."""

    def __init__(self, run: Run, out: Path, started: float) -> None:
        """`started`: seconds since 1970. TrainingError where a sample's line cannot be read."""
        self.notes: list[str] = []
        self._run, self._out, self._started = run, out, started
        self._samples = out.parent / _SAMPLES
        config, dataset = run.config, run.dataset
        size = places_of(dataset, config)[dataset.pictures[0].size].bucket
        lines = config.sample_prompts or (_usual_prompt(config, dataset),)
        self._lines = lines
        self._wishes: list[Wish] = [read_wish(line, size, config.seed) for line in lines]
        self._model = Path(config.pretrained_model_name_or_path)
        self._hash = hashes(self._model).sha256 if self._model.is_file() else ""

    def checkpoint(self, done: int, epoch: int) -> None:
        """Write the LoRA as it is after `done` steps, in the epoch that counts `epoch` from 1."""
        self._write(self._out.with_stem(f"{self._out.stem}-{done:06d}"), done, epoch)

    def sample(self, done: int) -> None:
        """Paint the samples after `done` steps."""
        self._keep(self._paint(), done)

    def finish(self, losses: Sequence[float], epoch: int) -> None:
        """Write the LoRA, and then what can fail: the pictures beside it."""
        self._write(self._out, self._run.steps, epoch)
        self._note_words()
        painted = self._paint()
        if painted:
            painted[0].save(self._out.with_suffix(".png"))
        every = self._run.config.sample_every_n_steps
        if every and painted:
            self._keep(painted, self._run.steps)
            self._sheet(every)
        if not loss_curve(losses, self._out.with_stem(f"{self._out.stem}-loss").with_suffix(".png")):
            self.notes.append("no curve of the loss: matplotlib is not installed")

    def _note_words(self) -> None:
        """Write what the WebUI adds to the prompt with the tag, where it looks for it; a user's own notes stay."""
        phrase = trigger_phrase(self._run.config, self._run.dataset)
        path = self._out.with_suffix(".json")
        if phrase and not path.exists():
            path.write_text(json.dumps({"activation text": phrase}, indent=4, ensure_ascii=False) + "\n", "utf-8")

    def _write(self, path: Path, done: int, epoch: int) -> None:
        run = self._run
        tensors = run.tensors(PRECISIONS[run.config.save_precision])
        notes = metadata_of(
            run.config,
            run.dataset,
            model_name=self._model.name,
            model_hash=self._hash,
            family=family_of(run.model.denoiser),
            prediction=run.model.schedule.kind,
            steps=done,
            epoch=epoch,
            started=self._started,
            finished=time.time(),
        )
        write_file(path, tensors, notes)

    def _paint(self) -> list[Image.Image]:
        """Return the samples; none, and a note, where they cannot be painted, for which no run is lost."""
        run = self._run
        tensors = run.tensors(PRECISIONS["no"])
        with run.aside():
            try:
                pictures, said = paint(run.model.pipe, self._wishes, self._out.stem, tensors)
            except (LoraError, RuntimeError, ValueError, TypeError) as error:
                self._say(f"no samples: {error}")
                return []
        for line in said:
            self._say(f"samples: {line}")
        return pictures

    def _keep(self, painted: Sequence[Image.Image], done: int) -> None:
        self._samples.mkdir(exist_ok=True)
        for index, picture in enumerate(painted):
            picture.save(self._sample_path(done, index))

    def _sheet(self, every: int) -> None:
        """Write all samples on one sheet: prompts down, steps across."""
        from PIL import Image

        last = self._run.steps
        # Those of a run that was broken off, and went on with other samples, are not all there.
        steps = [*range(every, last, every), last]
        rows = []
        for index, line in enumerate(self._lines):
            paths = [self._sample_path(step, index) for step in steps]
            rows.append((line, [Image.open(path).convert("RGB") if path.exists() else None for path in paths]))
        made = sheet(rows, [f"step {step}" for step in steps])
        made.save(self._out.with_stem(f"{self._out.stem}-samples").with_suffix(".png"))

    def _sample_path(self, done: int, index: int) -> Path:
        return self._samples / f"{self._out.stem}-{done:06d}-{index}.png"

    def _say(self, line: str) -> None:
        if line not in self.notes:
            self.notes.append(line)


def _usual_prompt(config: Config, dataset: Dataset) -> str:
    """Return the caption that most pictures have, with the tag of the LoRA in training."""
    own = Counter(each.caption for each in dataset.pictures if each.caption and not each.regularisation)
    caption = own.most_common(1)[0][0] if own else ""
    return f"{caption} <lora:{config.output_name}:1>".strip()
