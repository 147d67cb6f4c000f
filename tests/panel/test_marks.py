"""Favourites and dates of use: kept over restarts and renames, and never at the cost of what is kept already."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

import pytest

from lora_runtime.panel.marks import Mark, Marks

INK, WASH = "a" * 64, "b" * 64


@pytest.fixture
def marks(tmp_path: Path) -> Marks:
    return Marks(tmp_path / "marks.json")


def again(marks: Marks) -> Marks:
    """Return what another process has of the same file."""
    return Marks(marks.path)


def test_a_star_lasts_and_can_be_taken_back(marks: Marks, tmp_path: Path) -> None:
    ink, wash = tmp_path / "ink.safetensors", tmp_path / "wash.safetensors"
    marks.star(ink, "", True)
    assert again(marks).seen().of(ink).favourite
    assert not again(marks).seen().of(wash).favourite
    again(marks).star(ink, "", False)
    assert marks.seen().of(ink) == Mark()
    assert json.loads(marks.path.read_text()) == {"version": 1, "files": []}


def test_a_file_with_a_known_hash_keeps_its_star_wherever_it_goes(marks: Marks, tmp_path: Path) -> None:
    marks.star(tmp_path / "ink.safetensors", INK, True)
    assert marks.seen().of(tmp_path / "style" / "inkwash.safetensors", INK).favourite
    # Before its hash is known again, its place tells; another content there is another file.
    assert marks.seen().of(tmp_path / "ink.safetensors").favourite
    assert marks.seen().of(tmp_path / "ink.safetensors", WASH) == Mark()


def test_a_star_by_path_is_known_by_its_hash_once_that_is_known(marks: Marks, tmp_path: Path) -> None:
    ink = tmp_path / "ink.safetensors"
    marks.star(ink, "", True)
    marks.use([(ink, INK)], now=1000.0)
    assert again(marks).seen().of(tmp_path / "elsewhere.safetensors", INK) == again(marks).seen().of(ink)
    assert again(marks).seen().of(ink).favourite
    assert len(again(marks).seen().all) == 1


def test_what_is_moved_takes_its_mark_along(marks: Marks, tmp_path: Path) -> None:
    old, new = tmp_path / "ink.safetensors", tmp_path / "style" / "wash.safetensors"
    marks.star(old, "", True)
    marks.moved(old, new)
    assert again(marks).seen().of(new).favourite
    assert again(marks).seen().of(old) == Mark()


def test_the_date_of_use_is_that_of_the_last_one(marks: Marks, tmp_path: Path) -> None:
    ink, wash = tmp_path / "ink.safetensors", tmp_path / "wash.safetensors"
    marks.use([(ink, INK), (wash, "")], now=1000.0)
    marks.use([(ink, INK)], now=1030.0)  # of the same batch: not written down again
    assert (marks.seen().of(ink).used, marks.seen().of(wash).used) == (1000.0, 1000.0)
    marks.use([(ink, INK)], now=5000.0)
    assert (again(marks).seen().of(ink).used, again(marks).seen().of(wash).used) == (5000.0, 1000.0)


def test_another_process_s_marks_are_seen_and_kept(marks: Marks, tmp_path: Path) -> None:
    other = again(marks)
    marks.star(tmp_path / "ink.safetensors", "", True)
    other.star(tmp_path / "wash.safetensors", "", True)
    assert {Path(mark.path).stem for mark in marks.seen().all} == {"ink", "wash"}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 9, "files": []}', '{"version": 1}', "[" * 5000])
def test_a_broken_file_is_kept_aside_when_another_is_written(marks: Marks, tmp_path: Path, content: str) -> None:
    marks.path.write_text(content)
    assert marks.seen().all == []
    assert marks.path.read_text() == content
    marks.star(tmp_path / "ink.safetensors", "", True)
    assert (tmp_path / "marks.json.broken").read_text() == content
    assert again(marks).seen().of(tmp_path / "ink.safetensors").favourite


def test_single_rows_that_are_none_are_left_out(marks: Marks) -> None:
    good = {"path": "/ink.safetensors", "sha256": "", "favourite": True, "used": 4}
    dates = {"/n": -1, "/o": float("nan"), "/p": float("inf"), "/q": 10**400}
    rows = [good, 3, {}, {**good, "path": 4}, {**good, "path": "/x", "used": "y"}]
    rows += [{**good, "path": path, "used": used} for path, used in dates.items()]
    marks.path.write_text(json.dumps({"version": 1, "files": rows}))
    found = marks.seen().all
    assert [(mark.path, mark.favourite, mark.used) for mark in found] == [
        ("/ink.safetensors", True, 4.0),
        *((path, True, 0.0) for path in dates),
    ]


@pytest.mark.skipif(sys.platform == "win32", reason="names are UTF-16 there")
def test_a_name_that_is_not_utf_8_can_be_a_favourite(marks: Marks) -> None:
    odd = Path("/loras/caf\udce9.safetensors")
    marks.star(odd, "", True)
    assert again(marks).seen().of(odd).favourite


def test_several_threads_lose_nothing(marks: Marks, tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.safetensors" for number in range(20)]
    threads = [threading.Thread(target=marks.star, args=(path, "", True)) for path in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(again(marks).seen().of(path).favourite for path in files)


def test_without_a_home_nothing_is_kept_and_nothing_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("lora_runtime.panel.marks.cache_folder", _no_home)
    assert Marks().seen().all == []
    with pytest.raises(OSError, match="no home"):
        Marks().star(tmp_path / "ink.safetensors", "", True)


def _no_home() -> Path:
    raise OSError("no home")
