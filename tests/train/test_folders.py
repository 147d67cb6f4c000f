"""Folders of pictures as people have them: what is read, and what costs only itself."""

from __future__ import annotations

import hashlib
import importlib
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lora_runtime.errors import TrainingError
from lora_runtime.train.config import Config, Subset
from lora_runtime.train.folders import Dataset, Picture, _as_many, find_pictures

Draw = Callable[..., Path]
ROOT = Path(__file__).resolve().parents[2]


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def found(tmp_path: Path, **numbers: Any) -> Dataset:
    return find_pictures(Config(train_data_dir=tmp_path / "train", **numbers))


def captions(dataset: Dataset) -> dict[str, str]:
    return {picture.path.name: picture.caption for picture in dataset.pictures}


def test_a_folder_says_how_often_and_what_and_a_text_file_says_more(tmp_path: Path, draw: Draw) -> None:
    folder = tmp_path / "train" / "20_my robot"
    path = draw(folder / "a.png", (64, 48))
    draw(folder / "b.png", (32, 96))
    write(folder / "b.txt", "a red robot, big\n")
    dataset = found(tmp_path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    first, second = dataset.pictures
    assert first == Picture(path, "my robot", "20_my robot", 20, False, (64, 48), "my robot", sha256)
    assert (second.caption, second.size, second.words) == ("a red robot, big", (32, 96), "my robot")
    assert dataset.notes == (f'{folder}: 1 of 2 pictures without a caption; "my robot" is theirs',)


@pytest.mark.parametrize(
    ("name", "repeats", "words"),
    [
        ("20_robot", 20, "robot"),
        ("3_hoge_girl 1", 3, "hoge_girl 1"),
        ("007_x", 7, "x"),
        ("5", 5, ""),
        ("5_", 5, ""),
        ("2_Röboter", 2, "Röboter"),
    ],
)
def test_names_of_folders_are_read_as_kohya_reads_them(
    tmp_path: Path, draw: Draw, name: str, repeats: int, words: str
) -> None:
    draw(tmp_path / "train" / name / "a.png")
    picture = found(tmp_path).pictures[0]
    assert (picture.repeats, picture.words, picture.caption) == (repeats, words, words)


def test_several_folders_and_all_formats_in_any_case_are_read_in_one_order(tmp_path: Path, draw: Draw) -> None:
    train = tmp_path / "train"
    for name in ("c.PNG", "b.jpg", "B.Jpeg", "a.webp", "z.bmp"):
        draw(train / "2_two" / name)
    draw(train / "10_one" / "x.png")
    write(train / "2_two" / "readme.md", "not a picture")
    names = [(picture.folder, picture.path.name) for picture in found(tmp_path).pictures]
    two = [("2_two", name) for name in ("B.Jpeg", "a.webp", "b.jpg", "c.PNG", "z.bmp")]
    assert names == [("10_one", "x.png"), *two]


def test_two_pictures_of_one_name_share_its_caption(tmp_path: Path, draw: Draw) -> None:
    folder = tmp_path / "train" / "1_x"
    for name in ("a.jpg", "a.png", "A.B.webp"):
        draw(folder / name)
    write(folder / "a.txt", "shared")
    write(folder / "A.B.caption", "dots are no endings")
    assert captions(found(tmp_path)) == {"a.jpg": "shared", "a.png": "shared", "A.B.webp": "dots are no endings"}


def test_a_caption_of_the_same_case_goes_before_one_of_another(tmp_path: Path, draw: Draw) -> None:
    folder = tmp_path / "train" / "1_x"
    draw(folder / "IMG1.PNG")
    draw(folder / "img2.png")
    write(folder / "IMG1.TXT", "upper")
    write(folder / "img2.txt", "lower")
    if not (folder / "IMG2.TXT").exists():  # where the file system tells them apart
        write(folder / "IMG2.TXT", "wrong")
    assert captions(found(tmp_path)) == {"IMG1.PNG": "upper", "img2.png": "lower"}


def test_endings_of_captions_are_looked_for_in_their_order(tmp_path: Path, draw: Draw) -> None:
    folder = tmp_path / "train" / "1_x"
    draw(folder / "a.png")
    write(folder / "a.txt", "txt")
    write(folder / "a.caption", "caption")
    assert captions(found(tmp_path)) == {"a.png": "txt"}
    assert captions(found(tmp_path, caption_extension=(".caption",))) == {"a.png": "caption"}


@pytest.mark.parametrize("turned", range(1, 9))
def test_the_size_is_that_of_the_picture_as_it_is_seen(tmp_path: Path, draw: Draw, turned: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turned
    draw(tmp_path / "train" / "1_x" / "a.jpg", (64, 48), exif=exif)
    # From 5 on, rows and columns are exchanged (EXIF 2.32, tag 274).
    assert found(tmp_path).pictures[0].size == ((64, 48) if turned < 5 else (48, 64))


def test_what_cannot_be_used_costs_only_itself_and_is_one_line(tmp_path: Path, draw: Draw) -> None:
    train = tmp_path / "train"
    folder = train / "4_x"
    draw(folder / "good.png")
    write(folder / "good.txt", "good")
    write(folder / "empty.png", b"")
    write(folder / "text.jpg", "no picture")
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 80, 3), np.uint8)).save(whole, "JPEG")
    write(folder / "cut.jpg", whole.getvalue()[:2000])
    draw(train / "loose.png")
    draw(train / "robot" / "a.png")
    draw(train / "0_none" / "a.png")
    (train / "3_empty").mkdir()
    (folder / "more").mkdir()
    write(train / "notes.txt", "nothing to say of it")
    dataset = found(tmp_path)
    assert captions(dataset) == {"good.png": "good"}
    assert [note.replace(str(train), "") for note in dataset.notes if "can be decoded" not in note] == [
        "/robot: not read; its name has no number in front, such as 20_robot",
        ": 1 picture directly in it not read; put them in a folder such as 20_robot",
        "/0_none: not read; its pictures would be shown 0 times",
        "/3_empty: no pictures in it",
        "/4_x: 1 folder in it not read; pictures lie directly in a folder N_words",
    ]
    broken = sorted(note for note in dataset.notes if "no picture that can be decoded" in note)
    assert [note.partition(":")[0].rpartition("/")[2] for note in broken] == ["cut.jpg", "empty.png", "text.jpg"]
    assert len(dataset.notes) == 8


@pytest.mark.parametrize(
    ("text", "caption", "note"),
    [
        (b"", "x", 'empty; the caption is "x" instead'),
        (b" \n\t\n", "x", 'empty; the caption is "x" instead'),
        (b"r\xf6bot", "x", 'not UTF-8; the caption is "x" instead'),
        ("röbot".encode("utf-16"), "x", 'not UTF-8; the caption is "x" instead'),
        ("\ufeffröbot, 机器人\r\n".encode(), "röbot, 机器人", ""),
        (b"one\ntwo\n", "one", "only the first line is read; a caption is one line"),
        (b"one\n\n", "one", ""),
    ],
)
def test_a_caption_that_cannot_be_read_gives_way_to_the_folders_words(
    tmp_path: Path, draw: Draw, text: bytes, caption: str, note: str
) -> None:
    folder = tmp_path / "train" / "1_x"
    draw(folder / "a.png")
    path = write(folder / "a.txt", text)
    dataset = found(tmp_path)
    assert captions(dataset) == {"a.png": caption}
    assert dataset.notes == ((f"{path}: {note}",) if note else ())


def test_pictures_without_any_words_are_said(tmp_path: Path, draw: Draw) -> None:
    folder = tmp_path / "train" / "5"
    draw(folder / "a.png")
    dataset = found(tmp_path)
    assert captions(dataset) == {"a.png": ""}
    assert dataset.notes == (f"{folder}: 1 of 1 picture without a caption, and the folder has no words",)


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_links_that_lead_in_circles_or_nowhere_stop_nothing(tmp_path: Path, draw: Draw) -> None:
    train = tmp_path / "train"
    draw(train / "1_x" / "a.png")
    (train / "2_circle").symlink_to(train / "2_circle")
    (train / "3_up").symlink_to(train)
    (train / "1_x" / "4_up").symlink_to(train)
    (train / "1_x" / "b.png").symlink_to("nowhere.png")
    (train / "5_y").symlink_to(tmp_path / "elsewhere")
    draw(tmp_path / "elsewhere" / "c.png")
    dataset = found(tmp_path)
    assert captions(dataset) == {"a.png": "x", "c.png": "y"}
    assert [note.replace(str(train), "").partition(";")[0].partition(" (")[0] for note in dataset.notes] == [
        "/2_circle: not read",
        "/1_x/b.png: cannot be read",
        "/1_x: 1 folder in it not read",
        "/3_up: 3 folders in it not read",
        "/3_up: no pictures in it",
    ]


def test_a_picture_too_small_for_its_buckets_costs_only_itself(tmp_path: Path, draw: Draw) -> None:
    folder = tmp_path / "train" / "1_x"
    draw(folder / "a.png", (200, 200))
    draw(folder / "b.png", (60, 200))
    dataset = found(tmp_path, bucket_no_upscale=True)
    assert captions(dataset) == {"a.png": "x"}
    assert len(dataset.notes) == 1 and "60 × 200 is too small" in dataset.notes[0]


def test_nothing_to_train_on_is_an_error_that_says_why(tmp_path: Path, draw: Draw) -> None:
    with pytest.raises(TrainingError, match=r"train: the folder cannot be read \(No such file"):
        found(tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(TrainingError, match=r"train: no pictures to train on; put them in a folder .* 20_robot"):
        found(tmp_path)
    draw(tmp_path / "train" / "a.png")
    with pytest.raises(TrainingError, match=r"no pictures to train on \(.*1 picture directly in it"):
        found(tmp_path)


def test_the_folder_of_pictures_itself_is_told_from_the_one_above_it(tmp_path: Path, draw: Draw) -> None:
    draw(tmp_path / "20_robot" / "a.png")
    with pytest.raises(TrainingError, match=r"no pictures to train on .*; give the folder above 20_robot$"):
        find_pictures(Config(train_data_dir=tmp_path / "20_robot"))


def test_regularisation_pictures_alone_are_nothing_to_train_on(tmp_path: Path, draw: Draw) -> None:
    (tmp_path / "train").mkdir()
    draw(tmp_path / "reg" / "1_toy" / "a.png")
    with pytest.raises(TrainingError, match="no pictures to train on"):
        found(tmp_path, reg_data_dir=tmp_path / "reg")


def test_folders_of_a_configuration_are_read_whatever_their_names(tmp_path: Path, draw: Draw) -> None:
    draw(tmp_path / "3_hoge" / "a.png")
    draw(tmp_path / "reg" / "b.png")
    subsets = (Subset(tmp_path / "3_hoge", 2, "hoge girl"), Subset(tmp_path / "reg", 1, "girl", True))
    gone = Subset(tmp_path / "gone", 1, "x")
    dataset = find_pictures(Config(subsets=(*subsets, gone)))
    told = [(picture.folder, picture.caption, picture.repeats, picture.regularisation) for picture in dataset.pictures]
    # The one regularisation picture is shown as often as the other one.
    assert told == [("3_hoge", "hoge girl", 2, False), ("reg", "girl", 2, True)]
    assert len(dataset.notes) == 1 and "gone: the folder cannot be read" in dataset.notes[0]


# --- regularisation ----------------------------------------------------------------------------------------------


def counted(repeats: list[int], wanted: int) -> list[int]:
    """Return kohya's repeats of regularisation pictures, counted one by one as its description has it."""
    taken: list[int] = []
    shown = 0
    for own in repeats:
        if shown >= wanted:
            break
        taken.append(own)
        shown += own
    place = 0
    while taken and shown < wanted:
        taken[place] += 1
        shown += 1
        place = (place + 1) % len(taken)
    return taken


@given(repeats=st.lists(st.integers(1, 9), max_size=12), wanted=st.integers(1, 100))
def test_regularisation_pictures_are_shown_as_often_as_the_others(repeats: list[int], wanted: int) -> None:
    pictures = [Picture(Path(f"{n}.png"), "", "1_x", own, True, (8, 8)) for n, own in enumerate(repeats)]
    notes: list[str] = []
    assert [picture.repeats for picture in _as_many(pictures, wanted, notes)] == counted(repeats, wanted)
    assert bool(notes) == (len(counted(repeats, wanted)) < len(repeats))


def test_regularisation_pictures_come_after_the_others_and_are_marked(tmp_path: Path, draw: Draw) -> None:
    for name in "ab":
        draw(tmp_path / "train" / "5_robot" / f"{name}.png")
    for name in "cde":
        draw(tmp_path / "reg" / "1_toy" / f"{name}.png")
    dataset = found(tmp_path, reg_data_dir=tmp_path / "reg")
    told = [(picture.path.name, picture.repeats, picture.regularisation) for picture in dataset.pictures]
    assert told == [
        ("a.png", 5, False),
        ("b.png", 5, False),
        ("c.png", 4, True),
        ("d.png", 3, True),
        ("e.png", 3, True),
    ]


# --- the repository's own ----------------------------------------------------------------------------------------


def test_the_robots_of_the_repository_are_read_without_a_note() -> None:
    dataset = find_pictures(
        Config(train_data_dir=ROOT / "training" / "pictures", resolution=(48, 48), bucket_reso_steps=16)
    )
    assert dataset.notes == ()
    assert len(dataset.pictures) == 24
    assert {(picture.size, picture.repeats, picture.words) for picture in dataset.pictures} == {((48, 48), 10, "robot")}
    assert all(" robot" in picture.caption for picture in dataset.pictures)
    assert sum(picture.path.stat().st_size for picture in dataset.pictures) < 150_000


def test_the_robots_are_as_they_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "training"))
    drawn = importlib.import_module("draw_pictures")
    for number, scene in enumerate(drawn.robot_scenes()):
        with Image.open(drawn.FOLDER / f"{number:02}.png") as image:
            kept = np.asarray(image).astype(int)
        # Another Pillow may round an edge otherwise.
        assert np.abs(kept - drawn.scenes.render(scene)).mean() < 1
        assert (drawn.FOLDER / f"{number:02}.txt").read_text(encoding="utf-8") == f"{scene.caption}\n"
