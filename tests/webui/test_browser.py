"""The Lora page as a person uses it, in headless Chromium: search, click, edit, generate, read the notice."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import program
import pytest
from PIL import Image

selenium = pytest.importorskip("selenium", reason="selenium is not installed: no browser is driven")

from selenium import webdriver  # noqa: E402
from selenium.common.exceptions import JavascriptException, WebDriverException  # noqa: E402

SWITCHES = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1400,1000"
)
PROMPT = "document.querySelector('#txt2img_prompt textarea')"
CARDS = "[...document.querySelectorAll('#txt2img_lora_cards .card')].filter(c => c.offsetParent)"


class Look(NamedTuple):
    """How an element is shown: its text, and colours as (red, green, blue) from 0 to 255."""

    text: str
    colour: list[float]
    ground: list[float]

    @property
    def contrast(self) -> float:
        """Return the contrast of text and ground, from 1 to 21, by the formula of WCAG 2.1."""
        dark, light = sorted(map(luminance, (self.colour, self.ground)))
        return (light + 0.05) / (dark + 0.05)


def luminance(colour: list[float]) -> float:
    """Return the relative luminance of a colour in sRGB, from 0 to 1, by the formula of WCAG 2.1."""
    parts = [value / 255 for value in colour]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(share * part for share, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


# The ground of an element is that of the innermost element around it that has one.
_LOOK = """
const numbers = (colour) => colour.match(/[0-9.]+/g).map(Number);
return [...document.querySelectorAll(arguments[0])].map((element) => {
    let ground = [0, 0, 0, 0], around = element;
    for (; around && ground.length > 3 && ground[3] == 0; around = around.parentElement) {
        ground = numbers(getComputedStyle(around).backgroundColor);
    }
    return [element.textContent.trim(), numbers(getComputedStyle(element).color).slice(0, 3), ground.slice(0, 3)];
});
"""


class Page:
    """The program's page in a browser."""

    def __init__(self, driver: Any, url: str) -> None:
        self.driver = driver
        driver.get(url)
        self.until(lambda: self.run(f"return {CARDS.replace('.filter(c => c.offsetParent)', '')}.length"))
        self.run(_TAB, "Lora")
        self.until(self.names)

    def run(self, script: str, *arguments: Any) -> Any:
        """Run a script in the page."""
        return self.driver.execute_script(script, *arguments)

    def until(self, condition: Callable[[], Any], seconds: float = 40) -> Any:
        """Wait until a condition holds, and return it."""
        end = time.monotonic() + seconds
        while True:
            try:
                if found := condition():
                    return found
            except (JavascriptException, WebDriverException):
                pass  # the page is being built
            assert time.monotonic() < end, "the page never came to that"
            time.sleep(0.1)

    def names(self) -> list[str]:
        """Return the names on the cards."""
        return list(self.run(f"return {CARDS}.map(c => c.dataset.name)"))

    def click(self, name: str, button: str = "") -> None:
        """Click a card, or a button on it."""
        script = f"const c = {CARDS}.find(c => c.dataset.name == arguments[0]);"
        self.run(script + "(arguments[1] ? c.querySelector(arguments[1]) : c).click()", name, button)

    def type(self, selector: str, text: str) -> None:
        """Put a text into a field, as typing does."""
        self.run(
            "const e = document.querySelector(arguments[0]); e.value = arguments[1];"
            "e.dispatchEvent(new Event('input', {bubbles: true}))",
            selector,
            text,
        )

    def generate(self, prompt: str) -> str:
        """Paint 64 × 64 in 4 steps, and return what is said below the picture."""
        for name, value in (("steps", 4), ("width", 64), ("height", 64)):
            self.type(f"#txt2img_{name} input[type=number]", str(value))
        self.type("#txt2img_prompt textarea", prompt)
        said = "return document.querySelector('#html_log_txt2img').textContent"
        assert "Time taken" not in self.run(said)
        self.run("document.querySelector('#txt2img_generate').click()")
        return str(self.until(lambda: "Time taken" in self.run(said) and self.run(said)))

    def look(self, selector: str) -> list[Look]:
        """Return how each element that matches is shown."""
        return [Look(*found) for found in self.run(_LOOK, selector)]

    @property
    def prompt(self) -> str:
        """The prompt as it is."""
        return str(self.run(f"return {PROMPT}.value"))

    def shot(self, name: str) -> None:
        """Keep a picture of the page where SD_WEBUI_SHOTS names a folder."""
        if folder := os.environ.get("SD_WEBUI_SHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.driver.save_screenshot(str(Path(folder) / f"{name}.png"))


_TAB = (
    "[...document.querySelectorAll('#txt2img_extra_tabs > .tab-nav > button')]"
    ".find(b => b.textContent.trim() == arguments[0]).click()"
)


@pytest.fixture(scope="module")
def page(run: program.WebUI, data: Path) -> Iterator[Page]:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None or shutil.which("chromedriver") is None:
        pytest.skip("no Chromium with its driver is installed")
    Image.new("RGB", (64, 96), (180, 90, 40)).save(data / "models" / "Lora" / "sd1.png")
    run.post("/sdapi/v1/refresh-loras")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for switch in SWITCHES.split():
        options.add_argument(switch)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        yield Page(driver, run.url)
    finally:
        driver.quit()


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
    assert page.prompt == "a cat <lora:sd1:1>"
    page.click("sd1")
    assert page.prompt == "a cat"
    page.type("#txt2img_prompt textarea", "a cat <lora:sd1:te=0.5:unet=-1>, by night")
    page.click("sd1")
    assert "lora" not in page.prompt


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
    assert page.prompt == "a cat <lora:sd1:1> orange fur"
    page.click("sd1")
    assert page.prompt == "a cat"


def test_the_picture_changes_and_what_went_wrong_is_said_below_it(page: Page) -> None:
    page.shot("page")
    page.run(_TAB, "Generation")
    log = page.generate("a cat <lora:sd1:1> <lora:secnd:1> <lora:second:1,0>")
    assert 'column 20: no LoRA named "secnd"' in log
    assert 'Did you mean "second"' in log
    assert 'the strength "1,0" is not a number' in log
    info = page.run("return document.querySelector('#html_info_txt2img').textContent")
    assert "Lora hashes" in info
    page.shot("notices")
    page.run(_TAB, "Lora")
    ours = [entry for entry in page.driver.get_log("browser") if "lora_runtime" in entry["message"]]
    assert not ours


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_lines_below_the_picture_are_told_apart_by_their_colours(page: Page, run: program.WebUI, theme: str) -> None:
    page = Page(page.driver, f"{run.url}/?__theme={theme}")
    page.run(_TAB, "Generation")
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
