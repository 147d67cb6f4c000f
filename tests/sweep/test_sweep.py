"""A sweep on a pipeline built as SD1: the pictures are those of painting one by one, whatever else fails."""

from __future__ import annotations

import inspect
import itertools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from commands import Command
from safetensors.torch import save_file

import lora_runtime
from lora_runtime import lora_cache
from lora_runtime.sweep import SweepError, Swept, paint, run, sheet, sweep
from lora_runtime.sweep.manifest import Manifest, write_whole
from lora_runtime.wildcards import draw_name

Image = pytest.importorskip("PIL.Image")
np = pytest.importorskip("numpy")
pytest.importorskip("diffusers")

SIZE = {"width": 16, "height": 16, "steps": 2, "guidance_scale": 3.0}
NAMES = ("ink", "oil", "wash")
ROWS: list[dict[str, Any]] = [
    {"name": f"r{n}", "prompt": f"a boat {n} <lora:{NAMES[n % 3]}:{0.5 + n % 2}>", "seed": n, "mood": n % 4, **SIZE}
    for n in range(16)
]
ROWS[3]["prompt"] = "no tags"
ROWS[7]["prompt"] += "<lora:ink:0.4@0,0.9@1>"  # follows the steps, so it acts beside
ROWS[9] |= {"negative": "grey", "width": 32}


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny.pipeline()


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, pipe: Any) -> Path:
    folder = tmp_path_factory.mktemp("loras")
    for seed, name in enumerate(NAMES):
        tiny.write_kohya_lora(folder / f"{name}.safetensors", pipe, seed=seed, std=0.3)
    return folder


@pytest.fixture
def loras(sources: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sources, tmp_path / "loras"))


@pytest.fixture
def swept(pipe: Any, loras: Path, tmp_path: Path) -> Callable[..., Swept]:
    """`swept(rows, …)` paints into tmp_path/out."""

    def swept(rows: Any = ROWS, **more: Any) -> Swept:
        return sweep(rows, lambda: pipe, tmp_path / "out", **{"loras": loras, **more})

    return swept


def by_hand(pipe: Any, loras: Path, row: dict[str, Any]) -> Any:
    """Return the picture of a row as anybody would paint it."""
    with lora_runtime.apply(pipe, row["prompt"], loras=loras) as applied:
        painted = pipe(
            applied.prompt,
            negative_prompt=row.get("negative"),
            num_inference_steps=row["steps"],
            guidance_scale=row["guidance_scale"],
            width=row["width"],
            height=row["height"],
            generator=torch.Generator("cpu").manual_seed(row["seed"]),
        )
    return np.asarray(painted.images[0])


def pictures(out: Path) -> dict[str, Any]:
    return {path.stem: np.asarray(Image.open(path)) for path in out.glob("*.png")}


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]


def by_key(out: Path) -> dict[str, dict[str, Any]]:
    found = {line["key"]: line for line in lines(out)}
    assert len(found) == len(lines(out)), "a row is in the manifest twice"
    return found


# --- the same pictures ---------------------------------------------------------------------------------------------


def test_a_sweep_has_the_bits_of_painting_one_by_one(pipe: Any, loras: Path, swept: Callable[..., Swept]) -> None:
    done = swept()
    assert (done.painted, done.failed, done.kept, done.notes) == (16, 0, 0, ())
    found = pictures(done.out)
    assert sorted(found) == sorted(row["name"] for row in ROWS)
    assert all(np.array_equal(found[row["name"]], by_hand(pipe, loras, row)) for row in ROWS)
    assert any(not np.array_equal(found["r3"], each) for key, each in found.items() if key != "r9")


def test_a_word_that_a_file_brings_along_is_known_to_its_own_row_only(
    pipe: Any, loras: Path, swept: Callable[..., Swept]
) -> None:
    width = pipe.text_encoder.get_input_embeddings().embedding_dim
    save_file({"bundle_emb.zqx.emb_params": torch.randn(1, width)}, loras / "word.safetensors")
    rows = [
        {"name": "with", "prompt": "a zqx boat <lora:word>", "seed": 1, **SIZE},
        {"name": "without", "prompt": "a zqx boat", "seed": 1, **SIZE},
    ]
    found = pictures(swept(rows, batch=2).out)
    assert all(np.array_equal(found[row["name"]], by_hand(pipe, loras, row)) for row in rows)
    assert not np.array_equal(found["with"], found["without"])


@pytest.mark.slow
def test_a_batch_with_loras_of_their_own_is_the_same_within_a_level(
    pipe: Any, loras: Path, swept: Callable[..., Swept]
) -> None:
    done = swept(batch=4)
    assert (done.painted, done.failed) == (16, 0)
    assert {line["batch"] for line in lines(done.out)} >= {4}
    for key, picture in pictures(done.out).items():
        one = by_hand(pipe, loras, next(row for row in ROWS if row["name"] == key))
        # float32 beside a layer, and in it, differ by its rounding: one level of 255 at most where it is on an edge.
        assert np.abs(picture.astype(int) - one.astype(int)).max() <= 1


def test_named_sets_and_single_files_are_painted_and_a_changed_set_anew(
    pipe: Any, loras: Path, swept: Callable[..., Swept], tmp_path: Path
) -> None:
    (loras / "both.set.txt").write_text("<lora:ink:1> <lora:oil:0.5>", encoding="utf-8")
    (loras / "wash.safetensors").rename(tmp_path / "elsewhere.safetensors")
    rows = [
        {"name": "set", "prompt": "a boat <set:both:0.5>", "seed": 1, **SIZE},
        {"name": "file", "prompt": "a boat <lora:mine:1>", "seed": 1, **SIZE},
    ]
    given = {"loras": [{"mine": tmp_path / "elsewhere.safetensors"}, loras]}
    done = swept(rows, **given)
    meant = {**rows[0], "prompt": "a boat <lora:ink:0.5><lora:oil:0.25>"}
    assert np.array_equal(pictures(done.out)["set"], by_hand(pipe, loras, meant))
    written = by_key(done.out)
    assert written["set"]["infotext"].startswith(meant["prompt"])
    assert set(written["set"]["files"]) == {"ink", "oil"}
    assert set(written["file"]["files"]) == {"mine"}
    (loras / "both.set.txt").write_text("<lora:ink:1>", encoding="utf-8")
    again = swept(rows, resume=True, **given)
    assert (again.painted, again.kept) == (1, 1)


def test_a_file_of_a_folder_is_drawn_by_the_seed_of_the_row(
    pipe: Any, loras: Path, swept: Callable[..., Swept]
) -> None:
    names = [entry.relative for entry in lora_runtime.LoraCatalog(loras).entries]
    rows = [{"name": f"r{seed}", "prompt": "a boat <lora:*:1>", "seed": seed, **SIZE} for seed in range(4)]
    done = swept(rows)
    drawn = [draw_name("*", names, seed) for seed in range(4)]
    assert [list(by_key(done.out)[row["name"]]["files"]) for row in rows] == [[name] for name in drawn]
    for row, name in zip(rows, drawn, strict=True):
        meant = {**row, "prompt": f"a boat <lora:{name}:1>"}
        written = by_key(done.out)[row["name"]]["infotext"]
        assert written.splitlines()[0] == lora_runtime.read_infotext(written, loras=loras).prompt == meant["prompt"]
        assert np.array_equal(pictures(done.out)[row["name"]], by_hand(pipe, loras, meant))
    assert swept(rows, resume=True).kept == 4


def test_a_bad_row_beside_a_good_one_that_it_is_alike_but_for_its_fault(
    pipe: Any, loras: Path, swept: Callable[..., Swept]
) -> None:
    good = {"prompt": "a boat <lora:ink:1>", "seed": 0, **SIZE}
    done = swept([{**good, "seed": "x"}, good, {**good, "seed": -1}, {**good, "prompt": "\ud800"}])
    assert (done.painted, done.failed, done.notes) == (1, 3, ())
    (picture,) = pictures(done.out).values()
    assert np.array_equal(picture, by_hand(pipe, loras, good))
    assert [line["columns"] for line in lines(done.out) if line["error"]] == [
        {"seed": "x"},
        {"seed": -1},
        {"prompt": "\ud800"},
    ]


def test_the_weights_are_what_they_were(pipe: Any, swept: Callable[..., Swept]) -> None:
    before = {key: value.clone() for key, value in pipe.unet.state_dict().items()}
    swept(ROWS[:4], batch=2)
    assert all(torch.equal(value, before[key]) for key, value in pipe.unet.state_dict().items())


# --- what is written -----------------------------------------------------------------------------------------------


def test_the_manifest_says_what_each_picture_is_made_of(loras: Path, swept: Callable[..., Swept]) -> None:
    done = swept(batch=4)
    line = by_key(done.out)["r5"]
    catalog = lora_runtime.LoraCatalog(loras)
    hashes = catalog.hashes(catalog.resolve("wash"))
    assert (line["file"], line["error"], line["columns"], line["seed"]) == ("r5.png", None, {"mood": 1}, 5)
    assert line["tags"] == ["<lora:wash:1.5>"]
    assert line["files"] == {"wash": hashes.sha256}
    assert line["infotext"] == (
        "a boat 5 <lora:wash:1.5>\nSteps: 2, CFG scale: 3.0, Seed: 5, Size: 16x16, "
        f'Lora hashes: "wash: {hashes.sha256_of_tensors[:12]}"'
    )
    assert line["seconds"] > 0
    assert line["worker"] == 0


def test_a_picture_says_what_it_is_made_of(swept: Callable[..., Swept]) -> None:
    out = swept(ROWS[9:10]).out
    said = lora_runtime.read_infotext(out / "r9.png")
    assert said.prompt == ROWS[9]["prompt"]
    assert said.negative_prompt == "grey"
    assert said.parameters["Size"] == "32x16"


def test_what_a_row_leaves_out_is_the_pipelines_own(swept: Callable[..., Swept]) -> None:
    (line,) = lines(swept([{"prompt": "a", "width": 16, "height": 16, "steps": 1}]).out)
    assert "CFG scale: 7.5" in line["infotext"]  # the default of StableDiffusionPipeline
    assert line["guidance_scale"] is None


def test_a_warning_is_said_of_its_own_row(swept: Callable[..., Swept]) -> None:
    rows = [{**ROWS[0], "prompt": "a <lora:ink:1:what=3>"}, {**ROWS[1], "prompt": "b <lora:ink:1>"}]
    found = by_key(swept(rows, batch=2).out)
    assert found["r0"]["batch"] == 2
    assert any("what" in each["message"] for each in found["r0"]["diagnostics"])
    assert found["r1"]["diagnostics"] == []


def test_a_contact_sheet_has_tags_across_and_prompts_down(swept: Callable[..., Swept], tmp_path: Path) -> None:
    grid = [
        {"prompt": f"{text} <lora:{tag}>", "seed": seed, **SIZE}
        for text in ("a", "b")
        for tag in ("ink:0.5", "ink:1", "oil:1")
        for seed in (1, 2)
    ]
    swept(grid, grid=tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as drawn:
        assert drawn.width == 4 + 3 * (96 + 4)  # as train.charts.sheet draws: 16 pixels six times
        assert drawn.height == 16 + 4 * (96 + 16 + 4)


def test_a_sheet_of_too_many_pictures_is_said_and_costs_no_sweep(
    swept: Callable[..., Swept], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sheet, "_MOST", 1)
    done = swept(ROWS[:2], grid=tmp_path / "sheet.png")
    assert done.painted == 2
    assert "a sheet of 2 × 2 places: 1 are the most" in done.notes[0]


def test_a_sheet_without_a_picture_is_said_and_not_drawn(swept: Callable[..., Swept], tmp_path: Path) -> None:
    done = swept([{"prompt": "a <lora:nothing:1>"}], grid=tmp_path / "sheet.png")
    assert "there is no picture" in done.notes[0]
    assert not (tmp_path / "sheet.png").exists()


# --- what fails ----------------------------------------------------------------------------------------------------

BAD = [
    ({"prompt": "a <lora:inkk:1>"}, 'no LoRA named "inkk".*Did you mean "ink"'),
    ({"prompt": "a <lora:ink:nan>"}, '"nan" is not a finite number'),
    ({"prompt": "a <lora:ink:x>"}, 'the strength "x" is not a number'),
    ({"prompt": "a <lora:ink:1e38>"}, "its pixels are no numbers"),
    ({"prompt": "a", "width": 100_000, "height": 100_000}, "width is '100000': give a whole number from 1 to"),
    ({"prompt": "a", "width": 30_000, "height": 30_000}, "30000 × 30000 are more than 4194304 pixels"),
    ({"prompt": "a", "width": 33}, "ValueError: .*divisible by"),
    ({"prompt": "a", "steps": 0}, "steps is '0'"),
    ({"prompt": "a <lora:torn:1>"}, "torn"),
    ({"prompt": "a <lora:other:1>"}, "none of its .* keys belongs"),
]


@pytest.mark.parametrize("batch", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_a_bad_row_fails_alone_with_its_reason(pipe: Any, loras: Path, swept: Callable[..., Swept], batch: int) -> None:
    (loras / "torn.safetensors").write_bytes((loras / "ink.safetensors").read_bytes()[:-100])
    save_file(
        {"lora_unet_x.lora_up.weight": torch.ones(2, 1), "lora_unet_x.lora_down.weight": torch.ones(1, 2)},
        loras / "other.safetensors",
    )
    bad = [{**SIZE, "name": f"bad{n}", **given} for n, (given, _) in enumerate(BAD)]
    mixed = [row for pair in zip(ROWS, bad, strict=False) for row in pair]
    done = swept(mixed, batch=batch)
    assert (done.painted, done.failed) == (len(BAD), len(BAD))
    found = by_key(done.out)
    for n, (_, reason) in enumerate(BAD):
        assert re.search(reason, found[f"bad{n}"]["error"]), found[f"bad{n}"]["error"]
        assert found[f"bad{n}"]["file"] is None
        assert not (done.out / f"bad{n}.png").exists()
    for row in ROWS[: len(BAD)]:
        difference = np.abs(pictures(done.out)[row["name"]].astype(int) - by_hand(pipe, loras, row).astype(int))
        assert difference.max() <= (0 if batch == 1 else 1)


def test_a_batch_that_does_not_fit_the_memory_is_painted_in_parts(
    pipe: Any, loras: Path, swept: Callable[..., Swept], monkeypatch: pytest.MonkeyPatch
) -> None:
    call = type(pipe).__call__

    def small(self: Any, prompt: list[str], **more: Any) -> Any:
        if len(prompt) > 2:
            raise torch.OutOfMemoryError("out of memory") if hasattr(torch, "OutOfMemoryError") else MemoryError
        return call(self, prompt, **more)

    small.__signature__ = inspect.signature(call)  # type: ignore[attr-defined]
    monkeypatch.setattr(type(pipe), "__call__", small)
    done = swept(ROWS[:3] + ROWS[4:5], batch=4)
    assert (done.painted, done.failed) == (4, 0)
    assert {line["batch"] for line in lines(done.out)} == {2}


# --- again ---------------------------------------------------------------------------------------------------------


def test_a_folder_with_a_sweep_in_it_is_not_painted_over(swept: Callable[..., Swept]) -> None:
    swept(ROWS[:1])
    with pytest.raises(SweepError, match="has a sweep in it: --resume"):
        swept(ROWS[:1])


def test_resume_paints_what_is_missing_changed_or_failed(loras: Path, swept: Callable[..., Swept], pipe: Any) -> None:
    rows = [dict(row) for row in ROWS[:8]]
    rows[6]["prompt"] = "late <lora:late:1>"
    out = swept(rows).out
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.png")}
    (out / "r0.png").unlink()
    rows[2]["seed"] = 99
    shutil.copy(loras / "ink.safetensors", loras / "late.safetensors")
    tiny.write_kohya_lora(loras / "oil.safetensors", pipe, seed=9, std=0.3)  # r1, r4 and r7 are of this
    done = swept(rows, resume=True)
    repainted = {path.stem for path in out.glob("*.png") if path.stat().st_mtime_ns != before.get(path.name)}
    assert repainted == {"r0", "r1", "r2", "r4", "r6", "r7"}
    assert (done.painted, done.failed, done.kept) == (6, 0, 2)
    assert sorted(by_key(out)) == sorted(row["name"] for row in rows)
    assert swept(rows, resume=True).painted == 0


def test_a_torn_line_of_a_run_that_was_killed_is_painted_again(swept: Callable[..., Swept]) -> None:
    done = swept(ROWS[:3])
    path = done.manifest
    path.write_bytes(path.read_bytes()[:-20])
    again = swept(ROWS[:3], resume=True)
    assert (again.painted, again.kept) == (1, 2)
    assert sorted(by_key(done.out)) == ["r0", "r1", "r2"]


def test_an_interrupt_keeps_all_that_was_painted(
    pipe: Any, loras: Path, swept: Callable[..., Swept], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, call = [], paint.Painter._call

    def interrupted(self: Any, *given: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return call(self, *given)

    monkeypatch.setattr(paint.Painter, "_call", interrupted)
    with pytest.raises(KeyboardInterrupt):
        swept(ROWS[:6])
    out = next(loras.parent.glob("out"))
    assert len(by_key(out)) == len(pictures(out)) == 2
    assert (out / "index.html").read_text(encoding="utf-8").count("<figure>") == 2
    done = swept(ROWS[:6], resume=True)
    assert (done.painted, done.kept) == (4, 2)
    assert len(calls) == 3 + 4
    assert all(np.array_equal(pictures(out)[row["name"]], by_hand(pipe, loras, row)) for row in ROWS[:6])


def test_a_disk_without_room_ends_the_sweep_and_resume_goes_on(
    swept: Callable[..., Swept], monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = run.write_whole, []

    def full(path: Path, content: bytes) -> None:
        if path.suffix == ".png":
            written.append(path)
            if len(written) == 3:
                raise OSError(28, "No space left on device")
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(run, "write_whole", full)
        with pytest.raises(OSError, match="No space left"):
            swept(ROWS[:5])
    done = swept(ROWS[:5], resume=True)
    assert (done.painted, done.kept) == (3, 2)
    assert len(by_key(done.out)) == 5


def test_a_file_of_half_a_write_never_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    write_whole(path, b"old")

    def fails(descriptor: int) -> None:
        raise OSError("gone")

    monkeypatch.setattr("os.fsync", fails)
    with pytest.raises(OSError, match="gone"):
        write_whole(path, b"new and longer")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_row_that_is_asked_for_no_more_keeps_its_line(swept: Callable[..., Swept]) -> None:
    swept(ROWS[:3])
    out = swept(ROWS[:1], resume=True).out
    assert sorted(by_key(out)) == ["r0", "r1", "r2"]


def test_a_manifest_is_read_with_whatever_is_in_it(tmp_path: Path) -> None:
    path = tmp_path / "manifest.jsonl"
    path.write_bytes(b'{"key": "a"}\n[1]\n{"key": 3}\n\xff\xfe\n{"key": "b", "x')
    manifest = Manifest(path)
    manifest.read()
    assert list(manifest.lines) == ["a"]


KILLED = """
import os, sys, torch
from PIL import Image
from lora_runtime.sweep import sweep

class Pipe(torch.nn.Module):
    def __call__(self, prompt, generator, **more):
        if prompt == ["die"] and sys.argv[2] == "die":
            os.kill(os.getpid(), 9)
        self.images = [Image.new("RGB", (8, 8))]
        return self

rows = [{"name": name, "prompt": name} for name in ("a", "b", "die", "e")]
done = sweep(rows, Pipe, sys.argv[1], loras=[], resume=True)
print(done.painted, done.kept)
"""


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    def run_it(*arguments: str) -> subprocess.CompletedProcess[str]:
        code = [sys.executable, "-c", KILLED, str(tmp_path / "out"), *arguments]
        return subprocess.run(code, capture_output=True, text=True)

    assert run_it("die").returncode == -9
    assert sorted(by_key(tmp_path / "out")) == ["a", "b"]
    assert run_it("live").stdout == "2 2\n"
    assert sorted(by_key(tmp_path / "out")) == ["a", "b", "die", "e"]


# --- counted -------------------------------------------------------------------------------------------------------


def test_each_file_is_read_once_and_rows_with_the_same_tags_follow_each_other(
    swept: Callable[..., Swept], monkeypatch: pytest.MonkeyPatch
) -> None:
    lora_runtime.clear_cache()
    read, shown = [], []
    load, apply = lora_cache.load_lora, paint.apply

    def counted(path: Path, **more: Any) -> Any:
        read.append(Path(path).stem)
        return load(path, **more)

    def noted(pipe: Any, prompts: list[str], **more: Any) -> Any:
        shown.append(tuple(sorted({tag.raw for prompt in prompts for tag in lora_runtime.parse_prompt(prompt).tags})))
        return apply(pipe, prompts, **more)

    monkeypatch.setattr(lora_cache, "load_lora", counted)
    monkeypatch.setattr(paint, "apply", noted)
    monkeypatch.setattr("lora_runtime.lookup._cache", lora_cache.LoraCache(files=1))  # the narrowest there is
    rows = [{"prompt": f"a <lora:{NAMES[n % 3]}:{n % 2}>", "seed": n, **SIZE} for n in range(12)]
    assert swept(rows).painted == 12
    assert sorted(read) == sorted(NAMES)
    switches = sum(one != other for one, other in itertools.pairwise(shown))
    assert switches == 5  # six kinds of tags


# --- what can be no sweep, and the command -------------------------------------------------------------------------


def test_what_can_be_no_sweep_is_said_at_once(swept: Callable[..., Swept], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SweepError, match="both are whole numbers from 1"):
        swept(batch=0)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SweepError, match=re.escape('several workers need Ray: python -m pip install "ray>=2.9"')):
        swept(workers=2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, pipe: Any) -> Path:
    folder = tmp_path_factory.mktemp("model")
    pipe.save_pretrained(folder)
    return folder


def test_the_command_paints_and_resumes(command: Command, model: Path, loras: Path, tmp_path: Path) -> None:
    jobs = tmp_path / "jobs.csv"
    jobs.write_text("name,prompt,seed,width,height,steps\none,a <lora:ink:1>,1,32,32,1\ntwo,a <lora:no:1>,1,32,32,1\n")
    given = ("sweep", jobs, "--model", model, "--loras", loras, "--out", tmp_path / "out", "--device", "cpu")
    result = command(*given, "--grid", tmp_path / "sheet.png")
    assert result.status == 1
    assert "1 painted, 1 failed, " in result.out
    assert result.out.splitlines()[-1] == str(tmp_path / "out" / "index.html")
    assert 'two: no LoRA named "no"' in result.err
    assert (tmp_path / "sheet.png").exists()
    again = command(*given)
    assert again.status == 2
    assert "has a sweep in it" in again.err
    jobs.write_text("name,prompt,seed,width,height,steps\none,a <lora:ink:1>,1,32,32,1\n")
    resumed = command(*given, "--resume")
    assert resumed.status == 0
    assert "0 painted, 1 were there, 0 failed" in resumed.out


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (("--model", "nowhere"), "the model nowhere does not exist"),
        (("--grid", "sheet.txt"), "--grid sheet.txt: give a name that ends in"),
        (("--loras", "nowhere"), "nowhere"),
    ],
)
def test_what_the_command_cannot_do_is_one_line(
    command: Command, model: Path, loras: Path, tmp_path: Path, more: tuple[str, str], reason: str
) -> None:
    jobs = tmp_path / "jobs.jsonl"
    jobs.write_text('{"prompt": "a", "width": 32, "height": 32, "steps": 1}\n')
    usual = {"--model": model, "--loras": loras, "--out": tmp_path / "out"} | dict([more])
    result = command("sweep", jobs, *(part for pair in usual.items() for part in pair))
    assert result.status == 2
    assert reason in result.err
    assert len(result.err.splitlines()) == 1
