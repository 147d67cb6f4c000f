"""Favourites and dates of use: kept over restarts and renames, and never at the cost of what is kept already."""

from __future__ import annotations

import json
import subprocess
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


@pytest.mark.parametrize("sha256", ["", INK])
def test_a_file_has_no_star_of_another_that_had_its_place(marks: Marks, tmp_path: Path, sha256: str) -> None:
    ink, oil = tmp_path / "ink.safetensors", tmp_path / "oil.safetensors"
    marks.star(ink, sha256, True)
    marks.moved(oil, ink)  # the file that was starred is in the bin by now
    assert again(marks).seen().of(ink) == Mark()
    assert again(marks).seen().of(tmp_path / "elsewhere.safetensors", INK).favourite == bool(sha256)


def test_a_marked_file_keeps_its_own_mark_where_another_was(marks: Marks, tmp_path: Path) -> None:
    ink, oil = tmp_path / "ink.safetensors", tmp_path / "oil.safetensors"
    marks.star(ink, INK, True)
    marks.use([(oil, "")], now=1000.0)
    marks.moved(oil, ink)
    found = again(marks).seen().of(ink)
    assert (found.favourite, found.used) == (False, 1000.0)
    assert again(marks).seen().of(oil) == Mark()
    assert again(marks).seen().of(ink, INK).favourite


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


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": "9", "files": []}', '{"version": 1}', "[" * 5000])
def test_a_broken_file_is_kept_aside_when_another_is_written(marks: Marks, tmp_path: Path, content: str) -> None:
    marks.path.write_text(content)
    assert marks.seen().all == []
    assert marks.path.read_text() == content
    marks.star(tmp_path / "ink.safetensors", "", True)
    assert (tmp_path / "marks.json.broken").read_text() == content
    assert again(marks).seen().of(tmp_path / "ink.safetensors").favourite


def test_each_broken_file_is_kept(marks: Marks, tmp_path: Path) -> None:
    for content in ("{", "[", "no"):
        marks.path.write_text(content)
        marks.star(tmp_path / "ink.safetensors", "", True)
    kept = [path.read_text() for path in sorted(tmp_path.glob("marks.json.broken*"))]
    assert kept == ["{", "[", "no"]


def test_the_file_of_a_newer_version_stays_as_it_is(marks: Marks, tmp_path: Path) -> None:
    content = '{"version": 2, "stars": ["ink"]}'
    marks.path.write_text(content)
    assert marks.seen().all == []
    with pytest.raises(OSError, match="a newer version of lora_runtime has written it"):
        marks.star(tmp_path / "ink.safetensors", "", True)
    assert marks.path.read_text() == content
    assert list(tmp_path.glob("*.broken*")) == []


def test_single_rows_that_are_none_are_left_out(marks: Marks) -> None:
    good = {"path": "/ink.safetensors", "sha256": "", "favourite": True, "used": 4}
    dates = {"/n": -1, "/o": float("nan"), "/p": float("inf"), "/q": 10**400}
    rows = [good, 3, {}, {**good, "path": 4}, {**good, "path": "", "sha256": ""}]
    rows += [{**good, "path": path, "used": used} for path, used in dates.items()]
    rows += [{"path": "/r", "favourite": True}, {**good, "path": "/s", "used": "y", "sha256": None}]
    marks.path.write_text(json.dumps({"version": 1, "files": rows}))
    found = marks.seen().all
    assert [(mark.path, mark.favourite, mark.used) for mark in found] == [
        ("/ink.safetensors", True, 4.0),
        *((path, True, 0.0) for path in [*dates, "/r", "/s"]),
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


_STARS = """
import sys
from pathlib import Path
from lora_runtime.panel.marks import Marks
marks = Marks(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for number in range(60):
    marks.star(Path(f"/loras/{sys.argv[2]}-{number}.safetensors"), "", True)
"""


def test_two_processes_lose_nothing(marks: Marks) -> None:
    command = [sys.executable, "-c", _STARS, str(marks.path)]
    both = [
        subprocess.Popen([*command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for name in "ab"
    ]
    for each in both:
        assert each.stdout is not None
        assert each.stdout.readline() == "ready\n"
    for each in both:
        assert each.stdin is not None
        each.stdin.write("\n")
        each.stdin.flush()
    assert [each.communicate()[1] for each in both] == [None, None]
    assert [each.returncode for each in both] == [0, 0]
    assert len(marks.seen().all) == 120


def test_without_a_home_nothing_is_kept_and_nothing_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("lora_runtime.panel.marks.cache_folder", _no_home)
    assert Marks().seen().all == []
    with pytest.raises(OSError, match="no home"):
        Marks().star(tmp_path / "ink.safetensors", "", True)


def _no_home() -> Path:
    raise OSError("no home")
