"""What a host answers to a panel beside rows and edits: sets, presets, masks, and what is asked wrongly."""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lora_runtime import LoraCatalog
from lora_runtime.blocks import FLUX, UNET
from lora_runtime.errors import CatalogError
from lora_runtime.panel import CatalogLibrary, PromptFacts, Questions
from lora_runtime.panel.presets import FILE, keep_preset, own_presets
from lora_runtime.prompt import load_presets, parse_prompt

SD1 = UNET
SDXL = ["BASE", *(f"IN{n:02d}" for n in range(9)), "M00", *(f"OUT{n:02d}" for n in range(9))]


def asked(*folders: Path, blocks: Sequence[str] = UNET, **more: Any) -> Questions:
    """Return the questions of a host with these folders and a model with these blocks."""
    library = CatalogLibrary(LoraCatalog(*folders)) if folders else None
    return Questions(lambda: library, lambda: PromptFacts(blocks=blocks), lambda: folders, **more)  # type: ignore[arg-type, return-value]


def answer(questions: Questions, question: str, **body: Any) -> dict[str, Any]:
    status, table = questions.answer(question, body)
    assert status == 200, table
    return table


# --- sets ---


def test_a_set_is_a_file_and_the_first_folders_counts(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    (second / "sea.set.txt").write_text("<lora:oil:1>\n", encoding="utf-8")
    questions = asked(first, second)
    assert answer(questions, "sets") == {"sets": [{"name": "sea", "text": "<lora:oil:1>"}]}
    kept = answer(questions, "save-set", name="sea", text=" <lora:ink:0.5> ")
    assert kept == {"sets": [{"name": "sea", "text": "<lora:ink:0.5>"}]} == answer(questions, "sets")
    assert (first / "sea.set.txt").read_text(encoding="utf-8") == "<lora:ink:0.5>\n"
    assert answer(questions, "delete-set", name="sea") == {"sets": [{"name": "sea", "text": "<lora:oil:1>"}]}
    assert answer(questions, "delete-set", name="sea") == {"sets": []}
    assert answer(questions, "delete-set", name="sea")["error"].startswith('no set named "sea"')


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("../x", "<lora:a>", "is no name for a set"),
        ("con", "<lora:a>", "Windows keeps it"),
        ("x", "words", "has no tag in it"),
        (None, "<lora:a>", "a set is a name and the text"),
        ("x", ["<lora:a>"], "a set is a name and the text"),
    ],
)
def test_what_is_no_set_is_not_written(tmp_path: Path, name: Any, text: Any, why: str) -> None:
    assert why in answer(asked(tmp_path), "save-set", name=name, text=text)["error"]
    assert list(tmp_path.iterdir()) == []


def test_without_a_folder_nothing_is_kept_and_it_is_said() -> None:
    questions = asked()
    assert answer(questions, "sets") == {"sets": []}
    assert "no folder of LoRAs" in answer(questions, "save-set", name="x", text="<lora:a>")["error"]
    assert "no folder of LoRAs" in answer(questions, "delete-set", name="x")["error"]
    assert "no folder of LoRAs" in answer(questions, "save-preset", prompt="<lora:a>", tag=0, name="x")["error"]
    assert answer(questions, "masks") == {"masks": []}


def test_a_folder_that_is_not_there_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    questions = Questions(
        lambda: None, lambda: PromptFacts(blocks=UNET), lambda: [tmp_path / "gone", tmp_path / "there"]
    )  # type: ignore[arg-type, return-value]
    assert answer(questions, "save-preset", prompt="<lora:a>", tag=0, name="mine") == {"saved": "mine"}
    answer(questions, "save-set", name="sea", text="<lora:a>")
    assert answer(questions, "masks") == {"masks": []}
    assert sorted(each.name for each in (tmp_path / "there").iterdir()) == [FILE, "sea.set.txt"]


# --- presets ---


def saved(folder: Path, prompt: str, name: str = "mine", **how: Any) -> str:
    """Save the block weights of a prompt's first tag, and return the list in the file."""
    assert answer(asked(folder, **how), "save-preset", prompt=prompt, tag=0, name=name) == {"saved": name}
    return load_presets(folder / FILE).presets[name]


@pytest.mark.parametrize(
    ("blocks", "tag", "weights"),
    [
        # As docs/syntax.md has the lists: 26 numbers of SD 1, 20 of SDXL, 61 of Flux.
        (SD1, "<lora:a:1:IN04=0.5:OUT=0>", "1,1,1,1,1,0.5,1,1,1,1,1,1,1,1" + ",0" * 12),
        (SDXL, "<lora:a:1:M00=0.25>", "1,1,1,1,1,1,1,1,1,1,0.25,1,1,1,1,1,1,1,1,1"),
        (["BASE", *FLUX[1:]], "<lora:a:1:BASE=0.5:T5=0>", "0.5,0" + ",1" * 59),
        (["BASE", "IN01", "M00", "OUT03"], "<lora:a:1:lbw=MIDD>", "1,0,0,0,1,1,1,1,1,1,1,1,0,0,0,0,0"),
        (SD1, "<lora:a:0:was=0.7:IN04=R>", "1,1,1,1,1,R" + ",1" * 20),
    ],
)
def test_block_weights_are_saved_as_the_list_for_the_model(
    tmp_path: Path, blocks: Sequence[str], tag: str, weights: str
) -> None:
    assert saved(tmp_path, tag, blocks=blocks) == weights


def test_a_saved_preset_means_what_the_sliders_meant(tmp_path: Path) -> None:
    saved(tmp_path, "<lora:a:1:IN00-05=0.3:M00=0:OUT07=1.2>")
    presets = load_presets(tmp_path / FILE).presets
    [by_name] = parse_prompt("<lora:a:1:mine>", presets=presets).tags
    [by_blocks] = parse_prompt("<lora:a:1:IN00-05=0.3:M00=0:OUT07=1.2>").tags
    assert by_name.conditions.blocks is not None
    assert by_blocks.conditions.blocks is not None
    paths = [f"down_blocks.{row}.attentions.{n}.proj_in" for row in range(3) for n in range(2)]
    paths += [f"up_blocks.{row}.resnets.{n}.conv1" for row in range(4) for n in range(3)] + [
        "mid_block.resnets.0.conv1"
    ]
    for path in paths:
        assert by_name.conditions.blocks.ratio("unet", path) == by_blocks.conditions.blocks.ratio("unet", path)


def test_every_other_line_of_the_file_stays_as_it_is(tmp_path: Path) -> None:
    ones = ",".join("1" * 17)
    before = f"\ufeff# mine\r\nold:{ones}\r\nmine:{ones}\n\nrules:IN04:attn:0\n,OUT03:attn:1\nlast:{ones}"
    (tmp_path / FILE).write_bytes(before.encode())
    saved(tmp_path, "<lora:a:1:M00=0.5>")
    saved(tmp_path, "<lora:a:1:M00=0.2>", name="new one")
    after = (tmp_path / FILE).read_bytes().decode()
    kept, made = f"# mine\r\nold:{ones}\r\n", "1,1,1,1,1,1,1,1,1,1,1,1,1,{}" + ",1" * 12
    expected = f"{kept}mine:{made.format('0.5')}\n\nrules:IN04:attn:0\n,OUT03:attn:1\nlast:{ones}\n"
    assert after == f"{expected}new one:{made.format('0.2')}\n"
    assert sorted(each.name for each in tmp_path.iterdir()) == [FILE]


@pytest.mark.parametrize(
    ("prompt", "name", "why"),
    [
        ("<lora:a>", "MIDD", "others have too"),
        ("<lora:a>", "IN04", "means something else"),
        ("<lora:a>", "high", "means something else"),
        ("<lora:a>", "NaN", "means something else"),
        ("<lora:a>", "0.5", "is no name for a preset"),
        ("<lora:a>", "a:b", "is no name for a preset"),
        ("<lora:a>", "a\nb", "is no name for a preset"),
        ("<lora:a>", "a\ud83d", "is no name for a preset"),
        ("<lora:a>", "a" * 61, "is no name for a preset"),
        ("<lora:a>", "", "is no name for a preset"),
        ("<lora:a>", None, "is saved under a name"),
        ("<lora:a>", "elements", "is the name of rules for elements"),
        ("<lora:a:1:lbwe=ATTNDEEPOFF>", "mine", "take them out"),
        ("<lora:a:1:M00=0@0,1@1>", "mine", "has keyframes"),
        ("words", "mine", "there is no tag 1: the prompt has 0"),
    ],
)
def test_what_is_no_preset_is_said_and_not_written(tmp_path: Path, prompt: str, name: Any, why: str) -> None:
    (tmp_path / FILE).write_text("elements:IN04:attn:0\n", encoding="utf-8")
    before = (tmp_path / FILE).read_bytes()
    assert why in answer(asked(tmp_path), "save-preset", prompt=prompt, tag=0, name=name)["error"]
    assert (tmp_path / FILE).read_bytes() == before


@pytest.mark.parametrize(("blocks", "why"), [((), "none is loaded yet"), (("T5",), "lists are for UNets and Flux")])
def test_a_model_without_lists_is_said(tmp_path: Path, blocks: Sequence[str], why: str) -> None:
    said = answer(asked(tmp_path, blocks=blocks), "save-preset", prompt="<lora:a>", tag=0, name="mine")
    assert why in said["error"]


@pytest.mark.parametrize(
    ("content", "why"), [(b"caf\xe9:1,1\n", "is not UTF-8"), (b"#" * ((1 << 20) + 1), "1,048,576")]
)
def test_a_file_that_could_be_damaged_is_left_alone(tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / FILE).write_bytes(content)
    assert why in answer(asked(tmp_path), "save-preset", prompt="<lora:a>", tag=0, name="mine")["error"]
    assert (tmp_path / FILE).read_bytes() == content


def test_a_link_is_not_written_to(tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("theirs\n", encoding="utf-8")
    folder = tmp_path / "loras"
    folder.mkdir()
    try:
        (folder / FILE).symlink_to(other)
    except OSError:
        pytest.skip("this system makes no links")
    assert "is a link" in answer(asked(folder), "save-preset", prompt="<lora:a>", tag=0, name="mine")["error"]
    assert other.read_text(encoding="utf-8") == "theirs\n"


def test_two_who_save_at_a_time_both_keep_their_line(tmp_path: Path) -> None:
    names = [f"mine {'abcdefgh'[n]}" for n in range(8)]
    threads = [threading.Thread(target=saved, args=(tmp_path, "<lora:a>", name)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {*names} <= {*load_presets(tmp_path / FILE).presets}


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_to_is_said(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        assert "ermission" in answer(asked(tmp_path), "save-preset", prompt="<lora:a>", tag=0, name="mine")["error"]
    finally:
        tmp_path.chmod(0o700)


# --- masks ---


def picture(path: Path, *, width: int = 8, height: int = 4) -> None:
    """Write a mask whose left half is white."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made = Image.new("L", (width, height))
    made.paste(255, (0, 0, width // 2, height))
    made.save(path)


def test_masks_are_the_pictures_in_the_folders_that_are_no_loras_own(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for name in ("left.png", "masks/a b.webp", "ink.png", "ink.preview.png", ".hidden.png", ".cache/x.png", "a=b.png"):
        picture(first / name)
    (first / "ink.safetensors").write_bytes(b"")
    (first / "notes.txt").write_text("x", encoding="utf-8")
    picture(second / "left.png")
    picture(second / "right.bmp")
    picture(tmp_path / "outside.png")
    found = answer(asked(first, second), "masks")["masks"]
    assert found == ["left.png", "masks/a b.webp", "right.bmp"]
    for name in found:
        [tag] = parse_prompt(f"<lora:ink:1:mask={name}>").tags
        assert tag.conditions.region is not None
        assert tag.conditions.region.mask == name


def test_of_many_masks_the_first_are_listed(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
        for number in range(200):
            (folder / f"{folder.name}{number}.png").touch()
    assert len(answer(asked(first, second), "masks")["masks"]) == 300


def test_a_mask_is_shown_as_what_it_leaves_dark(tmp_path: Path) -> None:
    picture(tmp_path / "left.png", width=2000, height=1000)
    shown = asked(tmp_path).mask("left.png")
    assert shown is not None
    with Image.open(io.BytesIO(shown)) as opened:
        assert (opened.mode, opened.size) == ("LA", (512, 256))
        assert opened.getpixel((10, 100)) == (0, 0)
        assert opened.getpixel((500, 100)) == (0, round(255 * 0.65))


@pytest.mark.parametrize("name", ["../outside.png", "/etc/passwd", "ink.png", "gone.png", "", "\0", None, ["left.png"]])
def test_no_other_file_can_be_asked_for(tmp_path: Path, name: Any) -> None:
    folder = tmp_path / "loras"
    picture(tmp_path / "outside.png")
    picture(folder / "ink.png")
    (folder / "ink.safetensors").write_bytes(b"")
    assert asked(folder).mask(name) is None


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"GIF89a" + b"\xff" * 40])
def test_what_is_no_picture_is_no_mask(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "left.png").write_bytes(content)
    assert asked(tmp_path).mask("left.png") is None


@pytest.mark.skipif(sys.platform == "win32", reason="no such files there")
def test_a_pipe_is_no_mask_and_has_no_presets(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "left.png")  # who opened it would wait for ever
    os.mkfifo(tmp_path / FILE)
    assert asked(tmp_path).mask("left.png") is None
    assert own_presets([tmp_path]) == {}
    with pytest.raises(CatalogError, match="no plain file"):
        keep_preset([tmp_path], "soft", "1,0", {})


# --- what is asked wrongly ---


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("tags", None),
        ("tags", []),
        ("tags", {"prompt": 3}),
        ("tags", {"prompt": "a" * 100_001}),
        ("edit", {"prompt": "a", "tag": "0", "field": "te"}),
        ("edit", {"prompt": "a", "tag": True, "field": "te"}),
        ("edit", {"prompt": "a", "tag": 0, "field": None}),
        ("complete", {"prompt": "a", "cursor": 1.5}),
        ("save-preset", {"prompt": "a"}),
        ("conflicts", {"prompt": {}}),
    ],
)
def test_what_is_no_question_is_refused_with_a_reason(tmp_path: Path, name: str, body: Any) -> None:
    status, said = asked(tmp_path, conflicts=lambda _: {}).answer(name, body)
    assert status == 422
    assert "is expected" in said["detail"]


def test_conflicts_are_asked_for_only_where_a_host_can_tell(tmp_path: Path) -> None:
    assert "conflicts" not in asked(tmp_path).posted
    questions = asked(tmp_path, conflicts=lambda prompt: {"of": prompt})
    assert "conflicts" in questions.posted
    prompt = "words <lora:a:1:box=0,0,0.5,1:soft=0.1> <lora:b:0.5:stop=10:mask=x.png:IN04=0>"
    assert answer(questions, "conflicts", prompt=prompt) == {"of": "<lora:a:1> <lora:b:0.5:IN04=0>"}
