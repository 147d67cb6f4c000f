"""The pictures of docs/strength.md: all are there and small, and the script paints them."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lora_runtime.demo.scene_pipeline import load_pipeline

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script() -> Any:
    found = importlib.util.spec_from_file_location("strength_pictures", ROOT / "tools" / "strength_pictures.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_the_page_shows_each_sheet_and_none_is_large(script: Any) -> None:
    page = (ROOT / "docs" / "strength.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"\]\(strength-(\w+)\.png\)", page)) == sorted(script.SHEETS)
    for name in script.SHEETS:
        assert (ROOT / "docs" / f"strength-{name}.png").stat().st_size < 300_000


@pytest.mark.slow
def test_every_sheet_can_be_painted_and_a_batch_is_as_its_images_alone(
    script: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    monkeypatch.setattr(script, "ROOT", tmp_path)
    monkeypatch.setattr(script, "STEPS", 2)
    pipe = load_pipeline()
    monkeypatch.setattr(script, "load_pipeline", lambda: pipe)
    script.main([])
    difference = re.search(r"differ by at most (\d+) of 255", capsys.readouterr().out)
    assert difference is not None
    # The same sums in another order, then rounded to whole levels.
    assert int(difference[1]) <= 1
    for name in script.SHEETS:
        with Image.open(tmp_path / "docs" / f"strength-{name}.png") as sheet:
            assert sheet.width > 4 * script.TILE


def test_a_sheet_that_nobody_knows_is_named(script: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        script.main(["tyme"])
    assert "no sheet is named tyme" in capsys.readouterr().err
