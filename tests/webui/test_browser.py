"""The Lora page as a person uses it, in headless Chromium: search, click, edit, generate, read the notice."""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import program
import pytest
from hosts.page import CARDS, TAB, Page, chromium, luminance
from PIL import Image

if importlib.util.find_spec("selenium"):
    from selenium.webdriver.common.keys import Keys


@pytest.fixture(scope="module")
def page(run: program.WebUI, data: Path) -> Iterator[Page]:
    Image.new("RGB", (64, 96), (180, 90, 40)).save(data / "models" / "Lora" / "sd1.png")
    run.post("/sdapi/v1/refresh-loras")
    with chromium() as driver:
        yield Page(driver, run.url)


def test_search_takes_several_words_in_any_order(page: Page) -> None:
    assert {"sd1", "sd2", "sdxl", "second"} <= set(page.names())
    page.type("#txt2img_lora_extra_search", "second style")
    assert page.until(lambda: page.names() == ["second"])
    page.type("#txt2img_lora_extra_search", "")
    page.until(lambda: len(page.names()) >= 4)


def test_a_card_that_does_not_fit_says_how_much_of_it_does(page: Page) -> None:
    text = page.run(f"return {CARDS}.find(c => c.dataset.name == 'sdxl').textContent")
    assert " keys" in text


def test_a_click_adds_the_tag_and_another_takes_it_away(page: Page) -> None:
    page.type("#txt2img_prompt textarea", "a cat")
    page.click("sd1")
    assert page.written == "a cat <lora:sd1:1>"
    page.click("sd1")
    assert page.written == "a cat"
    page.type("#txt2img_prompt textarea", "a cat <lora:sd1:te=0.5:unet=-1>, by night")
    page.click("sd1")
    assert "lora" not in page.written


def test_what_is_edited_is_saved_beside_the_file_and_used_by_the_next_click(page: Page, data: Path) -> None:
    page.click("sd1", ".edit-button")
    box = "#txt2img_lora_edit_user_metadata"
    page.until(lambda: page.run(f"return document.querySelector('{box}').offsetParent !== null"))
    page.until(lambda: "sd1" in page.run(f"return document.querySelector('{box} .extra-network-name').textContent"))
    find = (
        f"const l = [...document.querySelectorAll('{box} label, {box} .block')]"
        ".find(e => e.textContent.includes(arguments[0]) && e.querySelector('textarea, input'));"
        "const i = l.querySelector('textarea, input'); i.value = arguments[1];"
        "i.dispatchEvent(new Event('input', {bubbles: true}))"
    )
    page.run(find, "Activation text", "orange fur")
    time.sleep(0.5)
    page.shot("editor")
    page.run(f"[...document.querySelectorAll('{box} button')].find(b => b.textContent.trim() == 'Save').click()")
    sidecar = data / "models" / "Lora" / "sd1.json"
    page.until(sidecar.exists)
    assert page.until(lambda: json.loads(sidecar.read_text())["activation text"] == "orange fur")
    page.type("#txt2img_prompt textarea", "a cat")
    page.until(lambda: page.run(f"return {CARDS}.length"))
    time.sleep(1)
    page.click("sd1")
    assert page.written == "a cat <lora:sd1:1> orange fur"
    page.click("sd1")
    assert page.written == "a cat"


def test_the_picture_changes_and_what_went_wrong_is_said_below_it(page: Page) -> None:
    page.shot("page")
    page.run(TAB, "Generation")
    log = page.generate("a cat <lora:sd1:1> <lora:secnd:1> <lora:second:1,0>")
    assert 'column 20: no LoRA named "secnd"' in log
    assert 'Did you mean "second"' in log
    assert 'the strength "1,0" is not a number' in log
    info = page.run("return document.querySelector('#html_info_txt2img').textContent")
    assert "Lora hashes" in info
    page.shot("notices")
    page.run(TAB, "Lora")
    ours = [entry for entry in page.driver.get_log("browser") if "lora_runtime" in entry["message"]]
    assert not ours


def test_a_slider_below_the_prompt_changes_the_picture_and_without_the_tag_it_is_the_first_one(page: Page) -> None:
    page.run(TAB, "Generation")
    page.until(lambda: page.run("return Boolean(document.querySelector(arguments[0])?.shadowRoot)", page.stack))
    page.write("a cat")
    plain = page.painted()
    page.write("a cat <lora:sd1:1>, <lora:secnd:1>")
    assert page.said(".name") == ["sd1", "secnd"]
    page.button("second").click()
    page.becomes("a cat <lora:sd1:1>, <lora:second:1>")
    page.parts(".mute")[1].click()
    page.becomes("a cat <lora:sd1:1>, <lora:second:0:was=1>")
    whole = page.painted()
    slider = page.parts(".unet input[type=range]")[0]
    page.run("arguments[0].focus()", slider)
    slider.send_keys(*[Keys.ARROW_LEFT] * 12)
    page.becomes("a cat <lora:sd1:0.4>, <lora:second:0:was=1>")
    weak = page.painted()
    page.shot("panel")
    for index in (1, 0):
        page.parts("[aria-label^='Delete:']")[index].click()
        page.until(lambda index=index: len(page.parts(".row")) == index)
    page.becomes("a cat")
    assert np.array_equal(page.painted(), plain)
    differences = [float(np.abs(one - two).mean()) for one, two in ((whole, plain), (weak, plain), (weak, whole))]
    assert min(differences) > 0.5  # levels of 255
    page.run(TAB, "Lora")


def test_cards_are_starred_chosen_by_family_and_their_files_renamed_and_given_back(
    page: Page, run: program.WebUI, data: Path
) -> None:
    page.until(page.names)
    page.run(f"{CARDS}.find(c => c.dataset.name == 'sd1').querySelector('.lora-runtime-star').click()")
    page.until(lambda: run.get("/lora-runtime/details", name="sd1")["favourite"])
    page.filter("★ Favourites")
    page.until(lambda: page.names() == ["sd1"])
    page.filter("★ Favourites")
    page.filter("SDXL")
    page.until(lambda: page.names() == ["sdxl"])
    page.filter("SDXL")
    page.until(lambda: len(page.names()) >= 4)
    page.click("second", ".lora-runtime-details-button")
    name = page.until(lambda: page.driver.find_element("css selector", "dialog input[type=text]"))
    page.shot("details")
    name.send_keys(Keys.CONTROL, "a", Keys.NULL, "the second", Keys.ENTER)
    renamed = data / "models" / "Lora" / "style" / "the second.safetensors"
    page.until(renamed.exists)
    page.until(lambda: "the second" in page.names() and not page.look("dialog"))
    page.filter("Undo")
    page.until(lambda: "second" in page.names() and "the second" not in page.names())
    assert not renamed.exists()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_lines_below_the_picture_are_told_apart_by_their_colours(page: Page, run: program.WebUI, theme: str) -> None:
    page = Page(page.driver, f"{run.url}/?__theme={theme}")
    page.run(TAB, "Generation")
    page.generate("a cat <lora:secnd:1> <lora:second:0.1:unet=1:unet=2> <lora:sd1:7>")
    error, warning, note = page.until(lambda: page.look("#html_log_txt2img .lora-runtime-said"))
    [others] = page.look("#html_log_txt2img .comments")
    page.run("document.querySelector('#html_log_txt2img').scrollIntoView({block: 'center'})")
    page.shot(f"colours-{theme}")
    for line, severity in ((error, "error"), (warning, "warning"), (note, "note")):
        assert line.text.startswith(f"LoRA {severity}: ")
        assert line.contrast >= 4.5, f"{line} cannot be read well"  # level AA
    assert len({tuple(line.colour) for line in (error, warning, note, others)}) == 4
    assert luminance(error.ground) > 0.5 if theme == "light" else luminance(error.ground) < 0.1


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_cards_that_cannot_be_fetched_are_said_in_the_colour_of_errors(
    page: Page, run: program.WebUI, theme: str
) -> None:
    page = Page(page.driver, f"{run.url}/?__theme={theme}")
    page.run("window.fetch = async () => new Response('', {status: 500})")
    page.type("#txt2img_lora_extra_search", "second")
    [failed] = page.until(lambda: page.look("#txt2img_lora_cards .lora-runtime-failed"))
    page.shot(f"failed-{theme}")
    assert "could not be fetched" in failed.text
    assert failed.contrast >= 4.5
    red, green, blue = failed.colour
    assert red > 1.5 * green
    assert red > 1.5 * blue
