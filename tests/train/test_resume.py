"""A run that is broken off goes on to the same bits, and what was saved stays."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from train.runs import config, pictures, pipeline

from lora_runtime.errors import LoraFileError, TrainingError
from lora_runtime.train import Step, Trained, train
from lora_runtime.train.state import State, read_state, write_state

ROOT = Path(__file__).resolve().parents[2]
QUICK = {"sample_prompts": ("a dot --s 1",)}
EVERYTHING: dict[str, Any] = {
    "train_text_encoder": True,
    "token_string": "dot",
    "ema_decay": 0.9,
    "flip_aug": True,
    "shuffle_caption": True,
    "caption_dropout_rate": 0.3,
    "noise_offset": 0.1,
    "gradient_accumulation_steps": 2,
    "lr_warmup_steps": 2,
}


@pytest.fixture(autouse=True)
def no_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_runtime.train.file.loss_curve", lambda losses, path: True)


class Broken(Exception):
    """What breaks a run off."""


def breaking_after(number: int) -> Any:
    def on_step(step: Step) -> None:
        if step.number == number:
            raise Broken

    return on_step


def same(one: Trained, other: Trained) -> bool:
    first, second = load_file(one.path), load_file(other.path)
    return (
        one.losses == other.losses
        and first.keys() == second.keys()
        and all(torch.equal(first[key], second[key]) for key in first)
    )


@pytest.mark.quick(2)
@pytest.mark.parametrize(
    ("over", "breaks"),
    [
        ({}, (1, 4)),
        (EVERYTHING, (3,)),
        ({"optimizer_type": "prodigyopt.Prodigy", "learning_rate": 1.0}, (3,)),
        ({"optimizer_type": "SGD", "optimizer_args": (("momentum", 0.9),), "lr_scheduler": "linear"}, (2,)),
    ],
    ids=["adamw", "everything", "prodigy", "sgd"],
)
def test_a_broken_run_goes_on_to_the_same_bits(over: dict[str, Any], breaks: tuple[int, ...], tmp_path: Path) -> None:
    pipe = pipeline("small")
    told = config(tmp_path, output_dir=tmp_path / "whole", save_every_n_steps=2, max_train_steps=5, **QUICK, **over)
    whole = train(pipe, told)
    for number in breaks:
        again = config(
            tmp_path, output_dir=tmp_path / f"{number}", save_every_n_steps=2, max_train_steps=5, **QUICK, **over
        )
        with pytest.raises(Broken):
            train(pipe, again, breaking_after(number))
        assert not again.out.exists()
        seen: list[int] = []
        trained = train(pipe, again, lambda step, seen=seen: seen.append(step.number), resume=True)
        # From the state, which is written before the step after it.
        assert seen[0] == (number - 1) // 2 * 2 + 1
        assert same(whole, trained)
        assert not again.out.with_suffix(".state").exists()


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    pictures(tmp_path)
    over = {"save_every_n_steps": 1, "max_train_steps": 6, "sample_prompts": ["a dot --s 1"], "output_dir": "killed"}
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "train.one_run", str(tmp_path), json.dumps(over)]
    number = random.randint(1, 5)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=tmp_path) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if json.loads(line)[0] == number:
                process.send_signal(signal.SIGKILL)
                break
    assert process.returncode == -signal.SIGKILL
    killed = tmp_path / "killed" / "dot.safetensors"
    assert not killed.exists()
    # Both go on in processes with as many threads: sums are in another order with others.
    for folder in ("killed", "whole"):
        line = [*command[:-1], json.dumps({**over, "output_dir": folder})]
        subprocess.run(line, check=True, capture_output=True, env=environment, cwd=tmp_path)
    first, second = load_file(killed), load_file(tmp_path / "whole" / "dot.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_what_is_there_is_neither_replaced_nor_forgotten_unasked(tmp_path: Path) -> None:
    pipe, told = pipeline("small"), config(tmp_path, save_every_n_steps=1, max_train_steps=2, **QUICK)
    with pytest.raises(Broken):
        train(pipe, told, breaking_after(2))
    state = told.out.with_suffix(".state")
    kept = state.read_bytes()
    with pytest.raises(TrainingError, match=r"dot\.state: a broken run left its state: --resume goes on from it"):
        train(pipe, told)
    other = config(tmp_path, save_every_n_steps=1, max_train_steps=2, network_dim=3, **QUICK)
    with pytest.raises(TrainingError, match=r"is of another run: network_dim \(was 2, is 3\)"):
        train(pipe, other, resume=True)
    (told.train_data_dir / "2_dot" / "0.txt").write_text("another dot", encoding="utf-8")
    with pytest.raises(TrainingError, match=r"is of another run: the pictures"):
        train(pipe, told, resume=True)
    assert state.read_bytes() == kept
    state.write_bytes(kept[:100])
    with pytest.raises(TrainingError, match=r"dot\.state: is no state of a run that can be read .*--force begins anew"):
        train(pipe, told, resume=True)
    trained = train(pipe, told, force=True)
    with pytest.raises(LoraFileError, match="exists already"):
        train(pipe, told)
    assert trained.path.exists()


def test_resume_without_a_state_begins_and_says_so(tmp_path: Path) -> None:
    trained = train(pipeline("small"), config(tmp_path, max_train_steps=1, **QUICK), resume=True)
    assert trained.steps == len(trained.losses) == 1
    assert any("dot.state: is not there, so the run began with step 1" in note for note in trained.notes)


def test_a_full_disk_loses_nothing_that_was_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = pipeline("small")
    told = config(tmp_path, save_every_n_steps=1, max_train_steps=4, **QUICK)
    whole = train(pipe, config(tmp_path, output_dir=tmp_path / "whole", max_train_steps=4, **QUICK))
    sync, calls = os.fsync, []

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) == 4:  # the state after the second step: a LoRA and a state each
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LoraFileError, match=r"dot\.state: cannot be written: No space left on device;"):
        train(pipe, told)
    monkeypatch.undo()
    assert sorted(path.name for path in told.output_dir.iterdir()) == [
        "dot-000001.safetensors",
        "dot-000002.safetensors",
        "dot.state",
    ]
    assert same(whole, train(pipe, told, resume=True))


def test_checkpoints_are_written_when_they_are_due(tmp_path: Path) -> None:
    # Three pictures twice each in two buckets, two at a time: 3 batches an epoch.
    told = config(tmp_path, save_every_n_epochs=1, max_train_epochs=3, max_train_steps=1, **QUICK)
    trained = train(pipeline("small"), told)
    assert trained.steps == 9
    names = sorted(path.name for path in told.output_dir.glob("*.safetensors"))
    assert names == ["dot-000003.safetensors", "dot-000006.safetensors", "dot.safetensors"]


def test_a_state_is_read_as_it_was_written(tmp_path: Path) -> None:
    learner = {
        "numbers": {0: {"step": torch.tensor(3.0), "rate": 0.1, "betas": (0.9, 0.99)}, 1: [None, True, "x", 1e-300]},
        "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "bytes": torch.arange(4, dtype=torch.uint8),
    }
    path = tmp_path / "a.state"
    write_state(path, State(7, (0.25, 1 / 3), {"seed": "1"}, learner))
    found = read_state(path)
    assert (found.step, found.losses, found.run) == (7, (0.25, 1 / 3), {"seed": "1"})
    assert found.learner["numbers"][1] == [None, True, "x", 1e-300]
    first = found.learner["numbers"][0]
    assert (first["rate"], first["betas"]) == (0.1, (0.9, 0.99))
    assert torch.equal(first["step"], torch.tensor(3.0))
    assert torch.equal(found.learner["half"], learner["half"])
    assert torch.equal(found.learner["bytes"], learner["bytes"])
    with pytest.raises(LoraFileError, match=r"/it: a set in the optimiser's state cannot be written"):
        write_state(path, State(1, (), {}, {"it": {1}}))


def test_a_run_that_is_told_to_stop_keeps_its_last_step(tmp_path: Path) -> None:
    pipe = pipeline("small")
    whole = train(pipe, config(tmp_path, output_dir=tmp_path / "whole", **QUICK))
    told = config(tmp_path, output_dir=tmp_path / "stopped", **QUICK)
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        train(pipe, told, lambda step: step.number == 3, on_note=said.append)
    assert read_state(told.out.with_suffix(".state")).step == 3
    seen: list[int] = []
    trained = train(pipe, told, lambda step: seen.append(step.number), resume=True)
    assert seen == [4]
    assert same(whole, trained)


def test_what_there_is_to_say_is_told_before_the_first_step(tmp_path: Path) -> None:
    told = config(tmp_path, **QUICK)
    (told.train_data_dir / "no number").mkdir()
    (told.train_data_dir / "no number" / "a.png").write_bytes(b"x")
    order: list[str] = []
    trained = train(pipeline("small"), told, lambda step: order.append(str(step.number)), on_note=order.append)
    assert "no number" in order[0]
    assert order[1:5] == ["1", "2", "3", "4"]
    assert trained.notes[0] == order[0]
