"""The .json beside a file: the WebUI's own keys, other tools' keys kept, and nothing lost when it is broken."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from extension_package import module

sidecar = module("library.sidecar")

# As the WebUI's editor writes it.
WRITTEN_BY_THE_WEBUI = {
    "description": "Loose washes",
    "sd version": "SD1",
    "activation text": "watercolor painting",
    "preferred weight": 0.8,
    "negative text": "photo",
    "notes": "from a friend",
}


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    return tmp_path / "ink.safetensors"


def put(lora: Path, content: Any) -> None:
    text = content if isinstance(content, str) else json.dumps(content)
    lora.with_suffix(".json").write_text(text, encoding="utf-8")


def test_reads_what_the_webui_wrote(lora: Path) -> None:
    put(lora, WRITTEN_BY_THE_WEBUI)
    assert sidecar.read(lora) == sidecar.Sidecar(
        "Loose washes", "SD1", "watercolor painting", 0.8, "photo", "from a friend", rest={}
    )


def test_writes_what_the_webui_reads(lora: Path) -> None:
    sidecar.write(lora, sidecar.Sidecar("Loose washes", "SD1", "watercolor painting", 0.8, "photo", "from a friend"))
    assert json.loads(lora.with_suffix(".json").read_text("utf-8")) == WRITTEN_BY_THE_WEBUI


def test_without_a_file_the_notes_are_empty(lora: Path) -> None:
    assert sidecar.read(lora) == sidecar.Sidecar()


def test_keys_of_other_tools_stay(lora: Path) -> None:
    put(lora, {**WRITTEN_BY_THE_WEBUI, "civitai": {"id": 7}})
    notes = sidecar.read(lora)
    # Another tool writes while the editor is open.
    put(lora, {**WRITTEN_BY_THE_WEBUI, "civitai": {"id": 8}, "rating": 5})
    sidecar.write(lora, notes)
    content = json.loads(lora.with_suffix(".json").read_text("utf-8"))
    assert (content["civitai"], content["rating"]) == ({"id": 8}, 5)


def test_a_byte_order_mark_is_no_fault(lora: Path) -> None:
    lora.with_suffix(".json").write_bytes(b"\xef\xbb\xbf" + json.dumps({"notes": "é"}).encode())
    assert (sidecar.read(lora).notes, sidecar.read(lora).problem) == ("é", "")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"notes": "a",', "line 1, column 15"),
        ("[1, 2]", "it holds a list where a table of notes is expected"),
        ("null", "it holds a null"),
        ("", "line 1, column 1"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_a_broken_file_is_empty_notes_and_a_message(lora: Path, content: str, problem: str) -> None:
    put(lora, content)
    notes = sidecar.read(lora)
    assert notes == sidecar.Sidecar(problem=notes.problem)
    assert notes.problem.startswith("ink.json is not valid") and problem in notes.problem


def test_what_is_not_utf8_is_a_message(lora: Path) -> None:
    lora.with_suffix(".json").write_bytes(b'{"notes": "\xff"}')
    assert "it is not UTF-8" in sidecar.read(lora).problem


@pytest.mark.skipif(sys.platform == "win32", reason="no such files there")
def test_what_is_no_plain_file_is_not_read(lora: Path) -> None:
    os.mkfifo(lora.with_suffix(".json"))  # who opened it would wait for ever
    lora.with_suffix(".txt").symlink_to("/dev/zero")  # and here would have no end
    assert sidecar.read(lora).problem == "ink.json cannot be read: it is no plain file"
    assert sidecar.find_description(lora, {"ink.txt"}) == ""
    with pytest.raises(OSError, match="no plain file"):
        sidecar.write(lora, sidecar.Sidecar("Loose washes"))


def test_one_wrong_value_costs_only_itself(lora: Path) -> None:
    put(lora, {"notes": "a", "description": ["x"], "preferred weight": {}})
    notes = sidecar.read(lora)
    assert (notes.notes, notes.description, notes.preferred_weight) == ("a", "", 0.0)
    assert notes.problem == 'ink.json: "description" is a list, not a text, "preferred weight" is no number'


@pytest.mark.parametrize(
    ("written", "weight"),
    [(1, 1.0), ("0.7", 0.7), (-0.5, -0.5), (None, 0.0), ("", 0.0)],
)
def test_weights_as_tools_write_them(lora: Path, written: Any, weight: float) -> None:
    put(lora, {"preferred weight": written})
    assert (sidecar.read(lora).preferred_weight, sidecar.read(lora).problem) == (weight, "")


@pytest.mark.parametrize("written", ["NaN", "Infinity", "true", '"much"', "1" + "0" * 400])
def test_weights_that_are_no_finite_number_are_none(lora: Path, written: str) -> None:
    put(lora, f'{{"preferred weight": {written}}}')
    notes = sidecar.read(lora)
    assert notes.preferred_weight == 0.0 and "is no number" in notes.problem


def test_saving_keeps_a_broken_file_aside(lora: Path) -> None:
    put(lora, '{"notes": "hours of work",')
    sidecar.write(lora, sidecar.Sidecar(notes="new"))
    assert (lora.parent / "ink.json.broken").read_text("utf-8") == '{"notes": "hours of work",'
    assert sidecar.read(lora).notes == "new"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(lora: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(lora, WRITTEN_BY_THE_WEBUI)

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        sidecar.write(lora, sidecar.Sidecar())
    assert [path.name for path in lora.parent.iterdir()] == ["ink.json"]
    assert json.loads(lora.with_suffix(".json").read_text("utf-8")) == WRITTEN_BY_THE_WEBUI


def as_on_windows(monkeypatch: pytest.MonkeyPatch, failures: int) -> None:
    """Let the first renames fail as for a file that is open elsewhere, and read-only files stay where they are."""
    rename, unlink, left = Path.replace, Path.unlink, [failures]

    def replace(self: Path, target: Path) -> Path:
        if left[0]:
            left[0] -= 1
            raise PermissionError(13, "Access is denied")
        return rename(self, target)

    def remove(self: Path, missing_ok: bool = False) -> None:
        if self.exists() and not self.stat().st_mode & 0o200:
            raise PermissionError(13, "Access is denied")
        unlink(self, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "replace", replace)
    monkeypatch.setattr(Path, "unlink", remove)
    monkeypatch.setattr(sidecar, "_WAITS", (0.0, 0.0))
    monkeypatch.setattr(sidecar, "_ON_WINDOWS", True)


def test_a_file_that_is_open_for_a_moment_is_written_after_it(lora: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(lora, {})
    as_on_windows(monkeypatch, failures=2)
    sidecar.write(lora, sidecar.Sidecar(notes="new"))
    assert sidecar.read(lora).notes == "new"


def test_a_read_only_file_on_windows_is_an_error_and_leaves_no_draft(
    lora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(lora, {})
    lora.with_suffix(".json").chmod(0o444)
    as_on_windows(monkeypatch, failures=99)
    with pytest.raises(PermissionError):
        sidecar.write(lora, sidecar.Sidecar())
    assert [path.name for path in lora.parent.iterdir()] == ["ink.json"]


def test_a_folder_without_modes_takes_notes_too(lora: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", fail)
    sidecar.write(lora, sidecar.Sidecar(notes="new"))
    assert sidecar.read(lora).notes == "new"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such permissions")
def test_others_can_read_the_notes_where_they_could_before(lora: Path) -> None:
    put(lora, {})
    lora.with_suffix(".json").chmod(0o664)
    sidecar.write(lora, sidecar.Sidecar())
    assert lora.with_suffix(".json").stat().st_mode & 0o777 == 0o664


def test_the_preview_is_the_first_kind_that_is_there(lora: Path) -> None:
    for name in ("ink.preview.png", "ink.jpg", "inkwash.png"):
        (lora.parent / name).touch()
    assert module("library.pictures").find_preview(lora, ["png", "jpg"]) == lora.parent / "ink.preview.png"
    assert module("library.pictures").find_preview(lora, ["webp", "jpg", "png"]) == lora.parent / "ink.jpg"
    assert module("library.pictures").find_preview(lora, ["gif"]) is None
    assert module("library.pictures").find_preview(lora, ["png"], names=()) is None


def test_the_description_is_in_either_text_file(lora: Path) -> None:
    assert sidecar.find_description(lora) == ""
    (lora.parent / "ink.description.txt").write_bytes(b"caf\xc3\xa9 \xff")
    assert sidecar.find_description(lora) == "café �"
