"""The pictures of docs/workbench.md: they are there and small, and the script paints them."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script() -> Any:
    found = importlib.util.spec_from_file_location("workbench_pictures", ROOT / "tools" / "workbench_pictures.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _docs(script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    monkeypatch.setattr(script, "ROOT", tmp_path)


def test_the_page_shows_all_pictures_and_none_is_large(script: Any) -> None:
    page = (ROOT / "docs" / "workbench.md").read_text(encoding="utf-8")
    files = sorted(file for file, _ in script.PICTURES.values())
    assert sorted(re.findall(r"\]\((workbench[\w-]*\.png)\)", page)) == files
    for file in files:
        assert (ROOT / "docs" / file).stat().st_size < 300_000


def test_tags_and_the_merged_file_paint_the_same(
    script: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(script, "STEPS", 2)
    monkeypatch.setattr(script, "TILE", 32)
    script.main(["files"])
    difference = re.search(r"differ by at most (\d+) of 255", capsys.readouterr().out)
    assert difference is not None
    assert int(difference[1]) <= 1  # float16 factors, then rounded to whole levels
    with Image.open(tmp_path / "docs" / "workbench.png") as sheet:
        assert sheet.width > 6 * script.TILE


def test_the_heat_map_is_that_of_the_command(script: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the picture is matplotlib's (extra: plot)")
    script.main(["report"])
    with Image.open(tmp_path / "docs" / "workbench-report.png") as picture:
        assert picture.width > picture.height


@pytest.mark.slow
def test_balance_is_painted_of_each_alone_and_of_all_together(
    script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(script, "STEPS", 1)
    monkeypatch.setattr(script, "SMALL", 24)
    script.main(["balance"])
    with Image.open(tmp_path / "docs" / "workbench-balance.png") as sheet:
        assert sheet.width > 8 * script.SMALL


def test_a_picture_that_nobody_knows_is_named(script: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        script.main(["filse"])
    assert "no picture is named filse" in capsys.readouterr().err
