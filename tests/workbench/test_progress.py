"""How far it is, on stderr: by tqdm, or by lines where it is not installed."""

from __future__ import annotations

import sys

import pytest

from lora_runtime.workbench import progress
from lora_runtime.workbench.progress import steps


def test_nothing_is_printed_unless_it_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert [*steps([1, 2, 3], "merge", show=False)] == [1, 2, 3]
    assert capsys.readouterr() == ("", "")


def test_lines_tell_it_where_there_is_no_tqdm(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    now = iter(range(100))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    assert [*steps(range(8), "merge", show=True)] == [*range(8)]
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "merge: 0 of 8"
    assert all(line.startswith("merge: ") and line.endswith(" of 8") for line in lines)
    assert len(lines) == 2


def test_a_bar_shows_after_a_second_and_leaves_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tqdm")
    assert [*steps(range(3), "merge", show=True)] == [0, 1, 2]
    assert "merge" not in capsys.readouterr().err  # sooner than that
    monkeypatch.setattr(progress, "_PATIENCE", 0.0)
    assert [*steps(range(3), "merge", show=True)] == [0, 1, 2]
    assert "merge" in capsys.readouterr().err
