"""What a user of the built-in extension has, and what was asked for and missing there: in the real program."""

from __future__ import annotations

import shutil
from pathlib import Path

import loras
import program
import pytest
import torch
from safetensors.torch import load_file, save_file

WITH = "a cat <lora:sd1:0.7>"


@pytest.fixture(autouse=True)
def _defaults(run: program.WebUI) -> None:
    run.set_options(sd_model_checkpoint="sd1-a.safetensors", sd_lora="None", lora_add_hashes_to_infotext=True)


@pytest.fixture
def lora_folder(data: Path) -> Path:
    return data / "models" / "Lora"


def test_a_malformed_tag_costs_only_itself_and_is_named(run: program.WebUI) -> None:
    good = run.txt2img(WITH)
    picture = run.txt2img(f"{WITH} <lora:sd1:1,0> <lora:inc:1>")
    assert picture.difference(good) == 0
    assert [(notice["severity"], notice["column"]) for notice in picture.notices] == [("error", 32), ("error", 37)]
    assert 'the strength "1,0" is not a number' in picture.notices[0]["message"]
    assert 'no LoRA named "inc"' in picture.notices[1]["message"]


def test_a_lora_that_is_always_on_is_there_once(run: program.WebUI) -> None:
    expected = run.txt2img("a cat<lora:sd1:1>")
    run.set_options(sd_lora="sd1")
    picture = run.txt2img("a cat", n_iter=2)
    assert picture.infotext.count("<lora:sd1:1>") == 1
    assert program.Picture.difference(expected, first_of(picture)) == 0
    assert run.txt2img(WITH).infotext.count("<lora:sd1:") == 1


def first_of(picture: program.Picture) -> program.Picture:
    """Return only the first picture of several; a grid comes before them."""
    picture.pixels = picture.pixels[1:2] if len(picture.pixels) > 2 else picture.pixels[:1]
    return picture


def test_hashes_are_those_of_the_builtin(webui: Path, data: Path, run: program.WebUI) -> None:
    mine = run.txt2img(f"{WITH} <lora:second:0.5>").infotext
    with program.WebUI(webui, _copy(data), ours=False) as builtin:
        theirs = builtin.txt2img(f"{WITH} <lora:second:0.5>").infotext
    assert hashes(mine) == hashes(theirs)
    assert hashes(mine).count(":") == 2


def hashes(infotext: str) -> str:
    """Return the field with the hashes."""
    return infotext.partition('Lora hashes: "')[2].partition('"')[0]


def _copy(data: Path) -> Path:
    """Return a data folder of its own with the same models, for a second program."""
    other = data.parent / "second-data"
    if not other.exists():
        shutil.copytree(data / "models", other / "models")
        shutil.copytree(data / "openai", other / "openai")
    return other


def test_an_embedding_in_the_file_is_a_word_while_the_file_is_in_the_prompt(
    run: program.WebUI, lora_folder: Path
) -> None:
    tensors = load_file(lora_folder / "sd1.safetensors")
    bundle = {"bundle_emb.zorp.string_to_param.*": torch.randn(2, 64)}
    save_file({**tensors, **bundle}, lora_folder / "bundled.safetensors")
    run.post("/sdapi/v1/refresh-loras")
    without_word = run.txt2img("a cat <lora:bundled:0.7>")
    assert without_word.difference(run.txt2img(WITH)) == 0
    plain = run.txt2img("a cat zorp")
    with_word = run.txt2img("a cat zorp <lora:bundled:0.7>")
    assert 'TI hashes: "zorp: bundled' in with_word.infotext or "TI hashes: zorp: bundled" in with_word.infotext
    assert with_word.difference(run.txt2img("a cat zorp <lora:sd1:0.7>")) > 0
    assert run.txt2img("a cat zorp").difference(plain) == 0
    (lora_folder / "bundled.safetensors").unlink()


def test_the_api_lists_the_files(run: program.WebUI, lora_folder: Path) -> None:
    loras.write(lora_folder / "new.safetensors", lora_folder.parent / "Stable-diffusion" / "sd1-a.safetensors")
    assert "new" not in {lora["name"] for lora in run.get("/sdapi/v1/loras")}
    run.post("/sdapi/v1/refresh-loras")
    listed = {lora["name"]: lora for lora in run.get("/sdapi/v1/loras")}
    assert listed["new"]["path"] == str(lora_folder / "new.safetensors")
    assert listed["new"]["metadata"]["ss_output_name"] == "new"
    assert listed["new"]["alias"] == "new"
    (lora_folder / "new.safetensors").unlink()
    run.post("/sdapi/v1/refresh-loras")


def test_a_prompt_is_explained_without_painting(run: program.WebUI) -> None:
    before = run.digest()
    answer = run.post("/lora-runtime/explain", prompt="a cat <lora:sd1:te=0.3:unet=0.9> <lora:sdxl> <lora:x:>")
    assert answer["text"] == "a cat   "
    first, second = answer["tags"]
    assert (first["te"], first["unet"], first["column"]) == (0.3, 0.9, 7)
    assert first["used"] == first["keys"]
    assert second["used"] < second["keys"]
    assert any("the strength is empty" in notice["message"] for notice in answer["notices"])
    assert run.digest() == before


def test_a_prompt_is_reported_on(run: program.WebUI) -> None:
    before = run.digest()
    answer = run.post("/lora-runtime/report", prompt="a cat <lora:sd1:0.5> <lora:second:-0.5> <lora:x:>")
    assert answer["names"] == ["sd1", "second"]
    assert [table["title"] for table in answer["tables"]]
    assert "<table>" in answer["html"]
    assert any("the strength is empty" in notice["message"] for notice in answer["notices"])
    assert run.digest() == before


def test_two_files_of_one_name_are_both_within_reach(run: program.WebUI, lora_folder: Path) -> None:
    checkpoint = lora_folder.parent / "Stable-diffusion" / "sd1-a.safetensors"
    for index, folder in enumerate(("one", "two")):
        loras.write(lora_folder / folder / "twin.safetensors", checkpoint, seed=5 + index)
    run.post("/sdapi/v1/refresh-loras")
    one, two = (run.txt2img(f"a cat <lora:{folder}/twin:0.7>") for folder in ("one", "two"))
    assert one.difference(two) > 0
    assert not one.notices
    bare = run.txt2img("a cat <lora:twin:0.7>")
    assert bare.difference(two) == 0  # as the built-in has it: the last
    assert "2 files are called" in bare.notices[0]["message"]
    for folder in ("one", "two"):
        shutil.rmtree(lora_folder / folder)
    run.post("/sdapi/v1/refresh-loras")


def test_tags_in_the_negative_prompt_and_in_later_pictures_of_a_batch_are_not_passed_over_in_silence(
    run: program.WebUI,
) -> None:
    negative = run.txt2img("a cat", negative_prompt="ugly <lora:sd1:1>")
    assert "in the negative prompt is not applied" in negative.notices[0]["message"]


def test_the_same_tags_again_cost_nothing_to_speak_of(run: program.WebUI) -> None:
    run.txt2img(WITH)
    assert run.txt2img(WITH).difference(run.txt2img(WITH)) == 0


def test_xyz_plot_of_strengths(run: program.WebUI) -> None:
    labels = [axis["label"] for axis in run.get("/probe/axes")]
    which = next(index for index, label in enumerate(labels) if label.startswith("[LoRA] Strength"))
    arguments = [
        which,
        "sd1: 0-1(+0.5)",
        [],
        0,
        "",
        [],
        0,
        "",
        [],
        False,
        True,
        False,
        False,
        False,
        False,
        False,
        0,
        False,
    ]
    grid = run.txt2img("a cat", script_name="x/y/z plot", script_args=arguments)
    singles = [run.txt2img(f"a cat<lora:sd1:{strength}>") for strength in ("0", "0.5", "1")]
    assert len(grid.info["all_prompts"]) >= 3
    for single, text in zip(singles, ("0", "0.5", "1"), strict=True):
        assert any(f"<lora:sd1:{text}>" in prompt for prompt in grid.info["all_prompts"])
        assert any(pixels.shape == single.pixels[0].shape for pixels in grid.pixels)
        assert min(abs(p - single.pixels[0]).mean() for p in grid.pixels if p.shape == single.pixels[0].shape) == 0


def test_xyz_plot_of_loras(run: program.WebUI) -> None:
    labels = [axis["label"] for axis in run.get("/probe/axes")]
    axes = [labels.index("[LoRA] Which"), "", ["None", "sd1", "second"], 0, "", [], 0, "", []]
    arguments = [*axes, False, True, False, False, False, False, False, 0, False]
    grid = run.txt2img("a cat <lora:sd1:0.5>", script_name="x/y/z plot", script_args=arguments)
    singles = [run.txt2img(f"a cat {tag}") for tag in ("", "<lora:sd1:0.5>", "<lora:second:0.5>")]
    cells = [pixels for pixels in grid.pixels if pixels.shape == singles[0].pixels[0].shape]
    for single in singles:
        assert min(abs(cell - single.pixels[0]).mean() for cell in cells) == 0
