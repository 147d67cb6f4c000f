"""The page of a WebUI in headless Chromium, as a person uses it."""

from __future__ import annotations

import io
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pytest
from chromium import PanelTab, browser, lacking
from hosts.running import read_picture

PROMPT = "document.querySelector('#txt2img_prompt textarea')"
CARDS = "[...document.querySelectorAll('#txt2img_lora_cards .card')].filter(c => c.offsetParent)"
TAB = (
    "[...document.querySelectorAll('#txt2img_extra_tabs > .tab-nav > button')]"
    ".find(b => b.textContent.trim() == arguments[0]).click()"
)


@contextmanager
def chromium() -> Iterator[Any]:
    """Run a browser for the time of a `with` block; the test is skipped where none is installed."""
    if reason := lacking():
        pytest.skip(reason)
    with browser(size=(1400, 1000)) as driver:
        yield driver


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


class Page(PanelTab):
    """The program's page in a browser."""

    seconds = 40.0
    shots = "SD_WEBUI_SHOTS"
    prompt = "#txt2img_prompt textarea"
    stack = "#txt2img_lora_stack"

    def __init__(self, driver: Any, url: str) -> None:
        super().__init__(driver)
        driver.get(url)
        # What a click writes is with the program's settings, which its page asks for last.
        self.until(lambda: self.run("return typeof opts === 'object' && 'extra_networks_default_multiplier' in opts"))
        self.until(lambda: self.run(f"return {CARDS.replace('.filter(c => c.offsetParent)', '')}.length"))
        self.run(TAB, "Lora")
        self.until(self.names)

    def names(self) -> list[str]:
        """Return the names on the cards."""
        return list(self.run(f"return {CARDS}.map(c => c.dataset.name)"))

    def filter(self, text: str) -> None:
        """Click on a filter above the cards, or what else stands there, by its text."""
        find = "[...document.querySelectorAll('#txt2img_lora_cards_html .lora-runtime-filters button')]"
        self.run(f"{find}.find(b => b.textContent.startsWith(arguments[0])).click()", text)

    def click(self, name: str, button: str = "") -> None:  # type: ignore[override] - here cards are what is clicked
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

    def set_up(self) -> None:
        """Ask for 64 × 64 in 4 steps."""
        for name, value in (("steps", 4), ("width", 64), ("height", 64)):
            self.type(f"#txt2img_{name} input[type=number]", str(value))

    def painted(self, seconds: float = 40) -> np.ndarray:
        """Paint what the prompt says with seed 1, and return the pixels, (height, width, 3)."""
        self.set_up()
        self.type("#txt2img_seed input", "1")
        source = "return document.querySelector('#txt2img_gallery img')?.src ?? ''"
        before = self.run(source)
        self.run("document.querySelector('#txt2img_generate').click()")
        now = str(self.until(lambda: self.run(source) != before and self.run(source), seconds))
        with urllib.request.urlopen(now, timeout=seconds) as answer:
            return read_picture(io.BytesIO(answer.read()))

    def generate(self, prompt: str, seconds: float = 40) -> str:
        """Paint 64 × 64 in 4 steps, and return what is said below the picture."""
        self.set_up()
        self.type("#txt2img_prompt textarea", prompt)
        said = "return document.querySelector('#html_log_txt2img').textContent"
        assert "Time taken" not in self.run(said)
        self.run("document.querySelector('#txt2img_generate').click()")
        return str(self.until(lambda: "Time taken" in self.run(said) and self.run(said), seconds))

    def look(self, selector: str) -> list[Look]:
        """Return how each element that matches is shown."""
        return [Look(*found) for found in self.run(_LOOK, selector)]

    @property
    def written(self) -> str:
        """The prompt as it is."""
        return str(self.run(f"return {PROMPT}.value"))
