"""The line of a run: pictures, steps, what is kept on the way, the file. `train` is the whole of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from lora_runtime.errors import TrainingError
from lora_runtime.train.batches import Use
from lora_runtime.train.config import Config
from lora_runtime.train.file import Writer
from lora_runtime.train.folders import find_pictures
from lora_runtime.train.learning import check_finite
from lora_runtime.train.run import Run
from lora_runtime.train.state import State, check_same, identity_of, read_state, state_path, write_state
from lora_runtime.workbench.writing import check_free

__all__ = ["Step", "Trained", "train"]


@dataclass(frozen=True)
class Step:
    """What is told of a step: its number, from 1, of how many, its loss, and each part's learning rate after it."""

    number: int
    steps: int
    loss: float
    rates: tuple[float, ...]


@dataclass(frozen=True)
class Trained:
    """What a run has made: the file, how many steps it took in all, the loss of each, and what there is to say."""

    path: Path
    steps: int
    losses: tuple[float, ...]
    notes: tuple[str, ...]


def train(
    pipe: Any,
    config: Config,
    on_step: Callable[[Step], bool | None] | None = None,
    *,
    on_note: Callable[[str], None] | None = None,
    resume: bool = False,
    force: bool = False,
) -> Trained:
    """Train a LoRA on a pipeline of diffusers and write it to `config.out`, with pictures and states on the way.

    The pipeline is moved to accelerate's device, in the dtype of `config.mixed_precision`, and quantised where
    `config.quantize` says so; else it is afterwards what it was. `resume` goes on from the last state of a broken run,
    to the bit on the CPU; `force` replaces what is there. `on_step` is called after each step; where it returns True
    the state is written and KeyboardInterrupt raised. `on_note` is told what there is to say as soon as it is known.

    Raises TrainingError where pictures, numbers and model do not go together, or the state is of another run;
    LoraFileError where a file is there already or cannot be written. What was saved before stays as it is.
    """
    from accelerate import PartialState

    processes = PartialState()
    config.output_dir.mkdir(parents=True, exist_ok=True)
    out = check_free(config.out, force=force)
    dataset = find_pictures(config)
    run = Run(pipe, config, dataset, processes)
    try:
        identity = identity_of(config, dataset)
        state = _last_state(out, identity, resume=resume, force=force)
        notes: list[str] = []

        def say(line: str) -> None:
            notes.append(line)
            if on_note is not None and processes.is_main_process:
                on_note(line)

        for line in dataset.notes:
            say(line)
        losses: list[float] = []
        if state is not None:
            run.learner.load(state.learner)
            losses += state.losses
        elif resume:
            say(f"{state_path(out)}: is not there, so the run began with step 1")
        writer = Writer(run, out, started=time.time())
        run.begin()
        for number, epoch, ends, batches in _steps(run):
            if number < len(losses):
                continue
            losses.append(run.step(batches, number))
            check_finite(losses[-1], number + 1, config)
            done = number + 1
            stops = on_step is not None and on_step(Step(done, run.steps, losses[-1], tuple(run.learner.rates))) is True
            due = done < run.steps and _is_due(config, done, epoch + 1 if ends else 0)
            if due and processes.is_main_process:
                writer.checkpoint(done, epoch + 1)
            if (due or stops) and processes.is_main_process:
                write_state(state_path(out), State(done, tuple(losses), identity, run.learner.state()))
            if stops:
                raise KeyboardInterrupt
            every = config.sample_every_n_steps
            if every and done % every == 0 and done < run.steps and processes.is_main_process:
                writer.sample(done)
            processes.wait_for_everyone()
        if processes.is_main_process:
            writer.finish(losses, epoch + 1)
            state_path(out).unlink(missing_ok=True)
        processes.wait_for_everyone()
        for line in filter(None, [run.problem, *writer.notes]):
            say(line)
        return Trained(out, run.steps, tuple(losses), tuple(notes))
    finally:
        run.close()


def _last_state(out: Path, identity: Mapping[str, str], *, resume: bool, force: bool) -> State | None:
    """Return the state to go on from, or None where the run begins with its first step."""
    path = state_path(out)
    if not path.exists():
        return None
    if resume:
        state = read_state(path)
        check_same(path, state, identity)
        return state
    if not force:
        raise TrainingError(f"{path}: a broken run left its state: --resume goes on from it, --force begins anew")
    return None


def _steps(run: Run) -> Iterator[tuple[int, int, bool, list[list[Use]]]]:
    """Yield each step's number and epoch, from 0, whether it ends the epoch, and its batches."""
    number = 0
    for epoch in count():
        groups = run.groups_of(epoch)
        for place, batches in enumerate(groups, start=1):
            yield number, epoch, place == len(groups), batches
            number += 1
            if number == run.steps:
                return


def _is_due(config: Config, done: int, epochs: int) -> bool:
    """Return whether a checkpoint is due after `done` steps; `epochs`: how many are done, 0 within one."""
    by_steps = bool(config.save_every_n_steps) and done % config.save_every_n_steps == 0
    return by_steps or (bool(config.save_every_n_epochs and epochs) and epochs % config.save_every_n_epochs == 0)
