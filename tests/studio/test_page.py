"""The studio for real: gradio's page in headless Chromium, the embedded pipeline behind it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="gradio is not installed: the extra `studio` has it")

from chromium import axe_core, skip_without_browser

skip_without_browser()

from selenium.webdriver.common.keys import Keys  # noqa: E402
from studio_browser import Page, chromium  # noqa: E402

from lora_runtime import read_infotext  # noqa: E402
from lora_runtime.demo.scene_pipeline import LORAS  # noqa: E402

AXE = axe_core()
GRADIOS = [".empty"]  # an empty gallery: gradio names a plain element by aria-label

pytestmark = pytest.mark.filterwarnings("ignore")  # gradio's own threads, which end when they end


@pytest.fixture(scope="module")
def url(served: Any) -> Iterator[str]:
    """Serve the page, with the model in memory."""
    with served() as (studio, found):
        studio.warm()
        yield found


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def page(driver: Any, url: str) -> Page:
    found = Page(driver, url)
    found.load()
    return found


def written(png: bytes) -> str:
    """Return the prompt that stands in a picture."""
    with Image.open(io.BytesIO(png)) as opened:
        return read_infotext(opened).prompt


def pixels(png: bytes) -> np.ndarray[Any, Any]:
    with Image.open(io.BytesIO(png)) as opened:
        return np.asarray(opened.convert("RGB")).astype(int)


def test_a_tag_changes_the_picture_and_without_it_every_byte_is_as_before(page: Page) -> None:
    found = []
    for prompt in ("a red circle", "a red circle <lora:stripes:1>", "a red circle"):
        page.write(prompt)
        page.paint()
        found.append(page.painted())
        if "stripes" in prompt:
            assert "stripes" in page.text("#lr-report tbody th")
    before, with_tag, after = found
    assert abs(pixels(before) - pixels(with_tag)).mean() > 5  # of 255
    assert before == after


def test_a_click_on_a_card_puts_its_tag_in_and_a_second_takes_it_out(page: Page) -> None:
    page.write("a boat")
    page.click('.lr-card[data-tag="<lora:night:1>"]')
    assert page.value() == "a boat <lora:night:1>"
    page.until(
        lambda: (
            page.run("return document.querySelector('.lr-card[aria-pressed=true] .lr-name')?.textContent") == "night"
        )
    )
    page.click('.lr-card[data-tag="<lora:night:1>"]')
    assert page.value() == "a boat"
    page.run("document.execCommand('undo')")
    assert page.value() == "a boat <lora:night:1>"


def test_a_mistyped_name_is_said_below_the_prompt_and_with_the_picture_and_a_click_mends_it(page: Page) -> None:
    page.write("a red circle <lora:hart:1>")
    page.until(lambda: "heart" in page.panel("button.fix"))
    page.paint()
    page.painted()
    assert 'no LoRA named "hart"' in page.text("#lr-report")
    page.run("document.querySelector('lora-stack').shadowRoot.querySelector('button.fix').click()")
    page.until(lambda: page.value() == "a red circle <lora:heart:1>")


def test_a_picture_has_its_text_and_gives_it_back_to_the_fields(page: Page, tmp_path: Path) -> None:
    page.write("a tree <lora:outline:0.6>")
    page.paint()
    (tmp_path / "one.png").write_bytes(page.painted())
    assert read_infotext(tmp_path / "one.png").prompt == "a tree <lora:outline:0.6>"
    page.write("something else")
    page.tab("Read a picture")
    field = page.until(lambda: page.driver.find_element("css selector", "#lr-read input[type=file]"))
    field.send_keys(str(tmp_path / "one.png"))
    page.until(lambda: page.value() == "a tree <lora:outline:0.6>")
    page.tab("Pictures")


def enter(page: Page, **numbers: int) -> None:
    """Give the fields of these names numbers, as if they had been typed."""
    for name, value in numbers.items():
        page.run(
            f"const n = document.querySelector(\"input[aria-label='number input for {name}']\"); n.value = {value};"
            "['input', 'change'].forEach(kind => n.dispatchEvent(new Event(kind, {bubbles: true})))"
        )


def test_what_is_cancelled_ends_and_the_next_picture_is_as_ever(page: Page) -> None:
    page.write("a red circle")
    enter(page, Steps=20)
    page.paint()
    first = page.painted()
    enter(page, Pictures=16, Steps=100)  # so many that the click comes in time on a machine that has much to do
    page.paint()
    page.until(lambda: page.says("of 16"))
    page.click("#lr-cancel")
    page.until(lambda: page.says("Cancelled."))
    enter(page, Pictures=1, Steps=20)
    page.paint()
    assert page.painted() == first


def test_two_at_once_get_their_own_pictures_with_their_own_tags(page: Page, driver: Any, url: str) -> None:
    other = Page(driver, url)
    other.load()
    wishes = {page: "a red circle <lora:stripes:1>", other: "a red circle <lora:night:1>"}
    for each, prompt in wishes.items():
        each.write(prompt)
    for each in wishes:
        each.paint()
    for each, prompt in wishes.items():
        each.until(
            lambda each=each, prompt=prompt: read_infotext(Image.open(io.BytesIO(each.painted()))).prompt == prompt
        )
    assert abs(pixels(page.painted()) - pixels(other.painted())).mean() > 5


@pytest.mark.slow
def test_a_picture_is_laid_over_itself_without_its_loras_and_strengths_are_painted_on_one_sheet(page: Page) -> None:
    page.write("a red circle <lora:stripes:1>")
    page.paint()
    with_tag = page.painted()
    page.tab("Compare")
    page.click("#lr-compare")
    page.until(lambda: page.says("Left without"))
    shown = "return [...document.querySelectorAll('#lr-wipe img')].map(image => image.src)"
    addresses = page.until(lambda: page.run(shown))
    assert {written(page.fetch(address)) for address in addresses} == {"a red circle", written(with_tag)}
    page.tab("Grid")
    page.fill("#lr-strengths textarea, #lr-strengths input", "stripes: 0, 1")
    page.click("#lr-grid")
    page.until(lambda: page.says("2 pictures."))
    sheet = page.until(lambda: page.run("return document.querySelector('#lr-sheet img')?.src"))
    with Image.open(io.BytesIO(page.fetch(sheet))) as opened:
        assert opened.width > 2 * 96


@pytest.fixture
def fresh(driver: Any, url: str) -> Iterator[Page]:
    """Give a user of their own, who has painted nothing."""
    found = Page(driver, url)
    found.load()
    yield found
    found.close()


def test_a_box_is_drawn_over_the_picture_and_the_lora_acts_there_alone(fresh: Page) -> None:
    fresh.write("a red circle")
    fresh.paint()
    before = pixels(fresh.painted())
    fresh.write("a red circle <lora:night:1>")
    fresh.until(lambda: fresh.said(".name") == ["night"])
    fresh.part(".more").click()
    fresh.part(".where summary").click()
    shown = fresh.run("return document.querySelector('#lr-gallery img').src")
    fresh.until(lambda: [each.get_attribute("src") for each in fresh.parts(".region .picture")] == [shown])
    fresh.button("Add a box").click()
    fresh.until(lambda: fresh.value() == "a red circle <lora:night:1:box=0.25,0.25,0.75,0.75>")
    fresh.parts(".edges input")[2].send_keys(Keys.CONTROL, "a", Keys.NULL, "50", Keys.TAB)
    fresh.until(lambda: fresh.value() == "a red circle <lora:night:1:box=0.25,0.25,0.5,0.75>")
    fresh.paint()
    changed = abs(pixels(fresh.painted()) - before).mean(axis=(0, 2))  # by column of pixels
    assert changed[12:24].mean() > 3 * changed[36:].mean()


@pytest.mark.slow
def test_two_loras_are_compared_by_their_files(fresh: Page) -> None:
    fresh.write("a <lora:stripes:1> <lora:stripes:-0.5>")
    fresh.button("Conflicts").click()
    fresh.until(lambda: any("100 % of the common layers" in said for said in fresh.said(".conflicts .notice")))
    fresh.part(".conflicts summary").click()
    assert {cell.text for cell in fresh.parts(".heat td.against")} == {"-1.00"}


@pytest.mark.slow
def test_sets_and_presets_are_kept_beside_the_loras(driver: Any, served: Any, tmp_path: Path) -> None:
    for name in ("night.safetensors", "stripes.safetensors"):
        (tmp_path / name).write_bytes((LORAS / name).read_bytes())
    with served(loras=[str(tmp_path)]) as (studio, url):
        studio.warm()
        page = Page(driver, url)
        page.load()
        page.write("a red circle <lora:night:0.7>")
        page.button("Sets").click()
        page.part(".sets input").send_keys("evening", Keys.ENTER)
        page.until(lambda: page.said(".sets .notice") == ["saved: evening"])
        assert (tmp_path / "evening.set.txt").read_text(encoding="utf-8") == "<lora:night:0.7>\n"
        page.write("a red circle")
        page.until(lambda: not page.parts(".row"))
        page.button("Put into the prompt").click()
        page.until(lambda: page.value() == "a red circle <lora:night:0.7>")
        page.until(lambda: page.parts(".row"))
        page.part(".more").click()
        page.slide(".block:first-child input", "0")
        page.until(lambda: "=0>" in page.value())
        page.part("[aria-label='Name of the preset']").send_keys("less", Keys.ENTER)
        page.until(lambda: page.value() == "a red circle <lora:night:0.7:lbw=less>")
        page.paint()
        page.painted()
        assert "less" not in page.text("#lr-report .lr-notices")  # it is known where it paints, too
        [line] = (tmp_path / "lora_runtime_presets.txt").read_text(encoding="utf-8").splitlines()
        assert line.startswith("less:")
        page.close()


@pytest.mark.skipif(AXE is None, reason="axe-core is not there: pip install axe-core-python, or AXE_CORE=…/axe.min.js")
@pytest.mark.parametrize("theme", [pytest.param("light", marks=pytest.mark.slow), "dark"])
def test_axe_finds_nothing(fresh: Page, theme: str) -> None:
    fresh.load(theme)
    fresh.write("a <lora:stripes:1:box=0,0,0.5,1> <lora:stripes:-0.5> <lora:hart:1>")
    fresh.until(lambda: len(fresh.said(".name")) == 3 and fresh.panel("button.fix"))
    fresh.parts(".more")[0].click()
    fresh.button("Conflicts").click()
    fresh.button("Sets").click()
    fresh.until(lambda: fresh.parts(".conflicts summary") and fresh.parts(".region"))
    fresh.part(".conflicts summary").click()
    found = fresh.violations(cast("Path", AXE), "body", GRADIOS)
    assert found == []


@pytest.mark.parametrize(
    ("width", "theme"),
    [
        (400, "dark"),
        (1400, "light"),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in ((400, "light"), (1400, "dark"))),
    ],
)
def test_the_panel_is_as_wide_as_its_place(fresh: Page, theme: str, width: int) -> None:
    fresh.resize(width, 1100)
    fresh.load(theme)
    fresh.write("a <lora:stripes:1:box=0.1,0.2,0.6,0.9> <lora:night:0.7>")
    fresh.until(lambda: len(fresh.said(".name")) == 2)
    fresh.parts(".more")[0].click()
    fresh.button("Conflicts").click()
    fresh.part(".conflicts summary").click()
    fresh.run("document.querySelector('lora-stack').scrollIntoView()")
    fresh.shot(f"studio-panel-{theme}-{width}")
    outside = (
        "const s = document.querySelector('lora-stack').shadowRoot;"
        "const box = s.querySelector('.stack').getBoundingClientRect();"
        "return [...s.querySelectorAll('.stack *')].filter(e => e.getClientRects().length"
        " && !e.closest('.scroll, .region') && e.getBoundingClientRect().right > box.right + 1)"
        ".map(e => e.className || e.tagName)"
    )
    assert fresh.run(outside) == []
