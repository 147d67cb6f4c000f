"""Several checkpoints in one sweep, one sweep in a folder, what is counted; on pipelines that paint plain colours."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import Command
from safetensors.torch import save_file

import lora_runtime
from lora_runtime.sweep import SweepError, grid_rows, loaders, sweep

Image = pytest.importorskip("PIL.Image")


class Pipe(torch.nn.Module):
    """Paints one colour."""

    def __init__(self, colour: tuple[int, int, int]) -> None:
        super().__init__()
        self.proj = torch.nn.Linear(4, 4)
        self.colour = colour

    def __call__(self, prompt: list[str], generator: Any, width: int = 8, height: int = 8) -> Any:
        self.images = [Image.new("RGB", (width, height), self.colour) for _ in prompt]
        return self


COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


class Shelf:
    """Makes pipelines by name, and notes in which order, and how many were alive then."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.alive: list[int] = []
        self._seen: list[weakref.ref[Pipe]] = []

    def maker(self, name: str) -> Callable[[], Pipe]:
        def make() -> Pipe:
            self.made.append(name)
            self.alive.append(sum(ref() is not None for ref in self._seen))
            pipe = Pipe(COLOURS[name])
            self._seen.append(weakref.ref(pipe))
            return pipe

        return make

    @property
    def pipes(self) -> dict[str, Callable[[], Pipe]]:
        return {name: self.maker(name) for name in COLOURS}


def lines(out: Path) -> dict[str, dict[str, Any]]:
    text = (out / "manifest.jsonl").read_text(encoding="utf-8")
    return {line["key"]: line for line in map(json.loads, text.splitlines())}


def colour(path: Path) -> Any:
    return Image.open(path).getpixel((0, 0))


def test_each_row_is_painted_by_its_model_and_each_model_is_loaded_once(tmp_path: Path) -> None:
    shelf = Shelf()
    rows = grid_rows({"name": "x", "prompt": "a", "models": ["red", "green", "blue"], "seeds": "1-3"})
    rows.append({"name": "plain", "prompt": "a"})  # type: ignore[arg-type]
    done = sweep(rows[::2] + rows[1::2], shelf.pipes, tmp_path, loras=[])
    assert (done.painted, done.failed) == (10, 0)
    assert sorted(shelf.made) == ["blue", "green", "red"]
    assert shelf.alive == [0, 0, 0], "a model is given up before the next is loaded"
    for name, rgb in COLOURS.items():
        assert [colour(tmp_path / f"x-{name}-{seed}.png") for seed in (1, 2, 3)] == [rgb] * 3
    assert colour(tmp_path / "plain.png") == COLOURS["red"]
    found = lines(tmp_path)
    assert {found[f"x-{name}-1"]["model"] for name in COLOURS} == set(COLOURS)
    assert lora_runtime.read_infotext(tmp_path / "x-blue-1.png").parameters["Model"] == "blue"
    assert "model: blue" in (tmp_path / "index.html").read_text(encoding="utf-8")
    gc.collect()


def test_a_model_that_is_not_there_or_cannot_be_had_costs_only_its_rows(tmp_path: Path) -> None:
    def broken() -> Pipe:
        raise OSError("no such checkpoint")

    rows = [{"name": f"{model}{n}", "prompt": "a", "model": model} for n in range(3) for model in ("red", "bad", "no")]
    done = sweep(rows, {**Shelf().pipes, "bad": broken}, tmp_path, loras=[], batch=4)
    assert (done.painted, done.failed) == (3, 6)
    assert lines(tmp_path)["bad1"]["error"] == 'the model "bad" cannot be had: OSError: no such checkpoint'
    assert lines(tmp_path)["no2"]["error"] == 'no model is called "no": there are red, green, blue, bad'


def test_a_model_in_a_row_where_there_is_one_without_a_name_is_its_fault(tmp_path: Path) -> None:
    done = sweep([{"prompt": "a", "model": "red"}], Shelf().maker("red"), tmp_path, loras=[])
    assert done.failed == 1
    assert "leave the column `model` out" in next(iter(lines(tmp_path).values()))["error"]


def test_models_have_the_names_of_their_folders_or_those_that_are_given(tmp_path: Path) -> None:
    for name in ("one", "two", "a=b", "deep/one"):
        (tmp_path / name).mkdir(parents=True)
    named = f"third={tmp_path / 'a=b'}"
    found = loaders([str(tmp_path / "one"), str(tmp_path / "two"), str(tmp_path / "a=b"), named])
    assert list(found) == ["one", "two", "a=b", "third"]
    with pytest.raises(SweepError, match='two models are called "one"'):
        loaders([str(tmp_path / "one"), str(tmp_path / "deep" / "one")])
    with pytest.raises(SweepError, match="nowhere does not exist"):
        loaders(["x=nowhere"])


def test_a_file_of_rows_names_no_folder(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    rows = [{"name": "r", "prompt": "a", "model": str(tmp_path / "model")}]
    sweep(rows, Shelf().pipes, tmp_path / "out", loras=[])
    assert "no model is called" in lines(tmp_path / "out")["r"]["error"]


def test_two_sweeps_are_kept_out_of_one_folder(tmp_path: Path) -> None:
    shelf = Shelf()
    refused: list[str] = []

    def again(line: dict[str, Any], total: int) -> None:
        with pytest.raises(SweepError) as caught:
            sweep([{"prompt": "b"}], shelf.maker("red"), tmp_path, loras=[], resume=True)
        refused.append(str(caught.value))

    sweep([{"name": "r", "prompt": "a"}], shelf.maker("red"), tmp_path, loras=[], on_line=again)
    assert refused == [f"another sweep paints into {tmp_path} now: wait until it is done, or name another folder"]
    assert sorted(lines(tmp_path)) == ["r"]
    assert sweep([{"prompt": "b"}], shelf.maker("red"), tmp_path, loras=[], resume=True).painted == 1


HELD = """
import sys
from lora_runtime.sweep.lock import alone_in
from pathlib import Path
with alone_in(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_sweep_that_is_killed_leaves_its_folder_free(tmp_path: Path) -> None:
    shelf = Shelf()
    with subprocess.Popen(
        [sys.executable, "-c", HELD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(SweepError, match="another sweep paints into"):
            sweep([{"prompt": "a"}], shelf.maker("red"), tmp_path, loras=[])
        other.kill()
    assert sweep([{"prompt": "a"}], shelf.maker("red"), tmp_path, loras=[]).painted == 1


def test_how_often_files_are_read_is_counted(tmp_path: Path) -> None:
    lora_runtime.clear_cache()
    folder = tmp_path / "loras"
    folder.mkdir()
    for name in ("ink", "oil"):
        save_file(
            {"proj.lora_A.weight": torch.ones(1, 4), "proj.lora_B.weight": torch.ones(4, 1)},
            folder / f"{name}.safetensors",
        )
    rows = [{"prompt": f"a <lora:{('ink', 'oil')[n % 2]}:1>", "seed": n} for n in range(6)]
    done = sweep(rows, Shelf().maker("red"), tmp_path / "out", loras=folder)
    assert (done.painted, done.read) == (6, 2)
    assert sorted(line["read"] for line in lines(tmp_path / "out").values()) == [0, 0, 0, 0, 1, 1]
    again = sweep([{"prompt": "b <lora:ink:1>"}], Shelf().maker("red"), tmp_path / "out", loras=folder, resume=True)
    assert again.read == 0


def test_the_command_says_a_model_that_is_not_there(command: Command, tmp_path: Path) -> None:
    jobs = tmp_path / "jobs.jsonl"
    jobs.write_text('{"prompt": "a"}\n', encoding="utf-8")
    (tmp_path / "one").mkdir()
    given = ("--model", tmp_path / "one", "--model", f"one={tmp_path / 'one'}")
    result = command("sweep", jobs, *given, "--out", tmp_path / "out")
    assert (result.status, result.err.count("\n")) == (2, 1)
    assert 'two models are called "one": name them, --model NAME=DIR' in result.err
