"""The studio's cards in headless Chromium: stars, families, what was used last, films."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import skip_without_browser
from handmade import write

from lora_runtime.demo.scene_pipeline import LORAS, PIPELINE
from lora_runtime.panel.marks import Marks

pytest.importorskip("gradio", reason="gradio is not installed: the extra `studio` has it")
skip_without_browser()

from studio_browser import Page, chromium  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # gradio's own threads, which end when they end

NAMES = "return [...document.querySelectorAll('.lr-card .lr-name')].map(each => each.textContent)"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "loras"
    found.mkdir()
    for name in ("heart", "night", "stripes"):
        shutil.copyfile(LORAS / f"{name}.safetensors", found / f"{name}.safetensors")
    metadata = {"ss_base_model_version": "sdxl_base_v1-0"}
    write(found / "big.safetensors", {"x.lora_down.weight": ("F32", [1, 2], bytes(8))}, metadata)
    (found / "big.webm").write_bytes(b"no film, but asked for as one")
    return found


@pytest.fixture
def page(served: Any, folder: Path) -> Iterator[Page]:
    with served(models=[str(PIPELINE)], device="cpu", loras=[str(folder)]) as (_, url), chromium() as driver:
        found = Page(driver, url)
        found.load()
        yield found


def tick(page: Page, label: str) -> None:
    """Click on a box by what stands beside it."""
    page.run(
        "[...document.querySelectorAll('label')].find(each => each.textContent.trim() === arguments[0])"
        ".querySelector('input').click()",
        label,
    )


def test_stars_families_and_what_was_used_last_choose_the_cards(page: Page, folder: Path) -> None:
    page.until(lambda: page.run(NAMES) == ["big", "heart", "night", "stripes"])
    page.click('.lr-star[data-name="night"]')
    page.until(lambda: [Path(mark.path).stem for mark in Marks().seen().all] == ["night"])
    tick(page, "Favourites")
    page.until(lambda: page.run(NAMES) == ["night"])
    pressed = "return document.querySelector('.lr-star').getAttribute('aria-pressed')"
    assert page.run(pressed) == "true"
    tick(page, "Favourites")
    page.until(lambda: len(page.run(NAMES)) == 4)
    # A second click takes nothing into the prompt: the star is no part of the card.
    assert "night" not in page.value()
    page.write("a boat <lora:stripes:0.5>")
    page.paint()
    page.painted()
    tick(page, "Last used first")
    page.until(lambda: page.run(NAMES) == ["stripes", "big", "heart", "night"])
    assert page.run("return document.querySelector('video').getAttribute('src')") == "lora-runtime/film?name=big"
