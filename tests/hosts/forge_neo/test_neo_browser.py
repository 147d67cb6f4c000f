"""The Lora page in Forge Neo itself, in headless Chromium: cards, clicks, the editor, a picture and its notice."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

import neo_program as program
import numpy as np
import pytest
from hosts.page import CARDS, TAB, Page, chromium

if importlib.util.find_spec("selenium"):
    from selenium.webdriver.common.keys import Keys


@pytest.fixture(scope="module")
def page(forge: Path, data: Path) -> Iterator[Page]:
    with chromium() as driver, program.Forge(forge, data, page=True) as run:
        yield Page(driver, run.url)


def test_search_finds_and_a_click_writes_the_tag_and_takes_it_away(page: Page) -> None:
    assert {"A", "B", "C", "words"} <= set(page.names())
    page.type("#txt2img_lora_extra_search", "words")
    assert page.until(lambda: page.names() == ["words"])
    page.type("#txt2img_lora_extra_search", "")
    page.until(lambda: len(page.names()) >= 4)
    page.type("#txt2img_prompt textarea", "a cat")
    page.click("A")
    assert page.written == "a cat <lora:A:1>"
    page.click("A")
    assert page.written == "a cat"


def test_cards_with_a_badge_and_without_one_begin_at_the_same_height(page: Page) -> None:
    tops = page.run(
        f"return {CARDS}.map(c => [Boolean(c.querySelector('.lora-runtime-badge')), c.getBoundingClientRect().top])"
    )
    assert {has_badge for has_badge, _ in tops} == {True, False}
    assert len({top for _, top in tops}) == 1


def test_what_is_edited_is_saved_beside_the_file(page: Page, data: Path) -> None:
    page.click("B", ".edit-button")
    box = "#txt2img_lora_edit_user_metadata"
    page.until(lambda: page.run(f"return document.querySelector('{box}').offsetParent !== null"))
    page.until(lambda: "B" in page.run(f"return document.querySelector('{box} .extra-network-name').textContent"))
    find = (
        f"const l = [...document.querySelectorAll('{box} label, {box} .block')]"
        ".find(e => e.textContent.includes(arguments[0]) && e.querySelector('textarea, input'));"
        "const i = l.querySelector('textarea, input'); i.value = arguments[1];"
        "i.dispatchEvent(new Event('input', {bubbles: true}))"
    )
    page.run(find, "Activation text", "orange fur")
    page.shot("neo-editor")
    page.run(f"[...document.querySelectorAll('{box} button')].find(b => b.textContent.trim() == 'Save').click()")
    sidecar = data / "models" / "Lora" / "B.json"
    page.until(sidecar.exists)
    assert page.until(lambda: json.loads(sidecar.read_text(encoding="utf-8"))["activation text"] == "orange fur")
    page.until(lambda: page.run(f"return {CARDS}.length"))


def test_a_picture_and_what_is_said_of_it(page: Page) -> None:
    page.run(TAB, "Generation")
    log = page.generate("a cat <lora:A:1> <lora:nothing-of-that-name:1>", seconds=300)
    assert 'column 18: no LoRA named "nothing-of-that-name"' in log
    (line,) = page.look("#html_log_txt2img .lora-runtime-said")
    assert line.contrast >= 4.5  # level AA of WCAG 2.1
    page.shot("neo-picture")


def test_a_slider_below_the_prompt_changes_the_picture_and_without_the_tag_it_is_the_first_one(page: Page) -> None:
    page.run(TAB, "Generation")
    page.until(lambda: page.run("return Boolean(document.querySelector(arguments[0])?.shadowRoot)", page.stack))
    page.write("a cat")
    plain = page.painted(300)
    page.write("a cat <lora:A:1>")
    assert page.said(".name") == ["A"]
    whole = page.painted(300)
    slider = page.part(".unet input[type=range]")
    page.run("arguments[0].focus()", slider)
    slider.send_keys(*[Keys.ARROW_LEFT] * 12)
    page.becomes("a cat <lora:A:0.4>")
    weak = page.painted(300)
    page.shot("neo-panel")
    page.part("[aria-label^='Delete:']").click()
    page.becomes("a cat")
    assert np.array_equal(page.painted(300), plain)
    assert not any(np.array_equal(one, two) for one, two in ((whole, plain), (weak, plain), (weak, whole)))
