"""What belongs to a LoRA file, and what other programs have written beside it of where it is from."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from handmade import write

from lora_runtime.catalog import LoraCatalog
from lora_runtime.panel.sidecars import Origin, film_beside, origin_of, owned, picture_beside, words_of
from lora_runtime.whole_files import read_plain

# As the programs write them, shortened.
CIVITAI_INFO = {
    "id": 130072,
    "modelId": 118827,
    "name": "v1.0",
    "trainedWords": ["inkwash, loose lines", "paper"],
    "baseModel": "SDXL 1.0",
    "model": {"name": "Ink", "type": "LORA", "nsfw": False},
}
PAGE = "https://civitai.com/models/118827?modelVersionId=130072"


def lora(path: Path, **metadata: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write(path, {"x.lora_down.weight": ("F32", [1, 2], bytes(8))}, metadata or None)


def test_a_file_belongs_to_the_longest_stem_that_it_begins_with() -> None:
    names = [
        "ink.safetensors", "ink.v2.safetensors", "inkwell.safetensors", "ink.json", "ink.civitai.info", "ink.txt",
        "ink.preview.png", "ink.v2.png", "ink.v2.preview.png", "ink.v3.png", "inkwell.png", "ink", "ink-2.png",
    ]  # fmt: skip
    assert owned("ink", names) == ["ink.json", "ink.civitai.info", "ink.txt", "ink.preview.png", "ink.v3.png"]
    assert owned("ink.v2", names) == ["ink.v2.png", "ink.v2.preview.png"]
    assert owned("inkwell", names) == ["inkwell.png"]


def test_a_set_belongs_to_no_file() -> None:
    assert owned("ink", ["ink.safetensors", "ink.set.txt", "ink.txt"]) == ["ink.txt"]


@pytest.mark.parametrize(
    ("ending", "content"),
    [
        (".civitai.info", CIVITAI_INFO),
        (".metadata.json", {"file_name": "ink", "civitai": CIVITAI_INFO}),
        (".cm-info.json", {"ModelId": 118827, "VersionId": 130072, "TrainedWords": CIVITAI_INFO["trainedWords"]}),
    ],
)
def test_words_and_page_come_from_what_programs_write(tmp_path: Path, ending: str, content: object) -> None:
    path = lora(tmp_path / "ink.safetensors")
    (tmp_path / f"ink{ending}").write_text(json.dumps(content), encoding="utf-8")
    assert origin_of(path) == Origin(("inkwash", "loose lines", "paper"), PAGE)
    assert origin_of(path, {f"ink{ending}"}) == origin_of(path)
    assert origin_of(path, ()) == Origin()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "no JSON",
        "[1, 2]",
        "[" * 5000,
        '{"civitai": 3, "trainedWords": {"a": 1}, "modelId": "javascript:alert(1)"}',
        '{"trainedWords": [1, null, "", " , ", "' + "x" * 400 + '", "a\\u0000b"], "modelId": -4, "id": true}',
        '{"modelId": 1e400, "id": 5}',
    ],
)
def test_what_cannot_be_read_tells_nothing(tmp_path: Path, content: str) -> None:
    path = lora(tmp_path / "ink.safetensors")
    for ending in (".civitai.info", ".metadata.json", ".cm-info.json"):
        (tmp_path / f"ink{ending}").write_text(content, encoding="utf-8")
    assert origin_of(path) == Origin()


def test_a_page_leads_nowhere_else_than_to_its_site(tmp_path: Path) -> None:
    path = lora(tmp_path / "ink.safetensors")
    content = {**CIVITAI_INFO, "id": "1@elsewhere.example/"}
    (tmp_path / "ink.civitai.info").write_text(json.dumps(content), encoding="utf-8")
    assert origin_of(path).page == "https://civitai.com/models/118827"


def test_a_side_car_that_is_written_anew_is_read_anew(tmp_path: Path) -> None:
    path = lora(tmp_path / "ink.safetensors")
    beside = tmp_path / "ink.civitai.info"
    beside.write_text('{"trainedWords": ["a"]}')
    assert origin_of(path).words == ("a",)
    beside.write_text('{"trainedWords": ["a", "b"]}')
    assert origin_of(path).words == ("a", "b")


def test_words_beside_a_file_go_before_those_in_it(tmp_path: Path) -> None:
    lora(tmp_path / "ink.safetensors", **{"modelspec.trigger_phrase": "own phrase"})
    [entry] = LoraCatalog(tmp_path).entries
    assert words_of(entry) == ("own phrase",)
    (tmp_path / "ink.civitai.info").write_text(json.dumps(CIVITAI_INFO), encoding="utf-8")
    assert words_of(entry) == ("inkwash", "loose lines", "paper")


def test_pictures_and_films_are_found_by_the_file_s_name(tmp_path: Path) -> None:
    path = lora(tmp_path / "ink.v2.safetensors")
    assert (picture_beside(path), film_beside(path)) == (None, None)
    for name in ("ink.png", "ink.v2.preview.webp", "ink.v2.preview.webm", "ink.v2.mov"):
        (tmp_path / name).touch()
    assert picture_beside(path) == tmp_path / "ink.v2.preview.webp"
    assert film_beside(path) == tmp_path / "ink.v2.preview.webm"
    assert film_beside(path, {"ink.v2.mp4"}) == tmp_path / "ink.v2.mp4"


@pytest.mark.skipif(sys.platform == "win32", reason="no such files there")
def test_what_is_no_plain_file_is_not_read(tmp_path: Path) -> None:
    path = lora(tmp_path / "ink.safetensors")
    os.mkfifo(tmp_path / "ink.civitai.info")  # who opened it would wait for ever
    (tmp_path / "ink.metadata.json").symlink_to("/dev/zero")  # and here would have no end
    (tmp_path / "ink.cm-info.json").mkdir()
    assert origin_of(path) == Origin()


def test_a_file_that_never_ends_is_not_read_to_its_end(tmp_path: Path) -> None:
    made = tmp_path / "long"
    made.write_bytes(b"12345")
    assert read_plain(made, 5) == b"12345"
    with pytest.raises(OSError, match="more than 4 bytes"):
        read_plain(made, 4)
