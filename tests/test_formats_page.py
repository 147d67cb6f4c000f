"""docs/formats.md is what the code reads."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.skipif(importlib.util.find_spec("lycoris") is None, reason="its judges are not installed")
def test_the_page_is_what_the_script_prints() -> None:
    found = importlib.util.spec_from_file_location("formats_table", ROOT / "tools" / "formats_table.py")
    assert found is not None
    assert found.loader is not None
    script = importlib.util.module_from_spec(found)
    found.loader.exec_module(script)
    assert script.PAGE.read_text(encoding="utf-8") == script.page(), "run: python tools/formats_table.py --write"
    assert [script.rounded_up(value) for value in (0.0, 3e-7, 2e-5, 0.5)] == pytest.approx([1e-5, 1e-5, 1e-4, 1.0])
